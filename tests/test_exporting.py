import json

import pytest

from qnas_jax.errors import InputError
from qnas_jax.stages import exporting

MIOU = {
    "jax_fp32": 90.0,
    "jax_quantized": 60.0,
    "jax_int8": 59.5,
    "model.onnx": 59.5,
    "model_float.onnx": 0.0,
    "model.tflite": 59.4,
}


def _checked(folder, most, **changes):
    """Checks a stage whose parity.json has these figures."""
    folder.mkdir(exist_ok=True)
    miou = {name: value for name, value in {**MIOU, **changes}.items() if value is not None}
    (folder / "parity.json").write_text(json.dumps({"miou": miou}))
    exporting.check([folder], most)


def test_each_quantized_file_is_held_against_both_simulations(tmp_path):
    _checked(tmp_path / "teacher", 0.7)
    for most, changes, told in (
        (0.55, {}, r"model\.tflite has mIoU 59\.40 %, jax_quantized 60\.00 %"),
        (0.7, {"model.onnx": 58.0}, r"model\.onnx has mIoU 58\.00 %, jax_int8 59\.50 %"),
        (0.7, {"model.tflite": 58.0}, r"model\.tflite has mIoU 58\.00 %, jax_int8 59\.50 %"),
        (0.4, {"model.tflite": None}, r"model\.onnx has mIoU 59\.50 %, jax_quantized 60\.00 %"),
    ):
        with pytest.raises(InputError, match=rf"teacher/parity\.json: {told}; .*={most}: "):
            _checked(tmp_path / "teacher", most, **changes)
    _checked(tmp_path / "teacher", 0.55, **{"model.tflite": None})
