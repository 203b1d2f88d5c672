import json
import re

import pytest

from qnas_jax.errors import InputError
from qnas_jax.export import describe, runtimes
from qnas_jax.hardware import size
from qnas_jax.stages import export as export_stage
from qnas_jax.tasks import segmentation

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
    export_stage.check([folder], segmentation.task(tuple("abcd")), most)


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


def test_the_report_holds_a_file_against_the_column_of_its_format(tmp_path):
    """As finished runs have it, too: they say what the graph adds, and not always the column."""
    model = {
        "size_bytes": 900,
        "file_bytes": {"model.onnx": 1030, "model.tflite": 1200},
        "graph_bytes": {"model.onnx": 30, "model.tflite": 100},
    }
    parity = {"miou": MIOU, "agreement": {"jax_int8": {"model.onnx": 99.99}}}
    for name, content in (("model", model), ("parity", parity)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    latencies = {
        name: {kind: {"latency_ms": ms} for kind, ms in (("float", 2.0), ("quantized", quantized))}
        for name, quantized in (("another", 1.0), ("teacher", 2.0))
    }
    (file,) = export_stage.summary({"teacher": tmp_path}, "miou", latencies).values()
    assert (file.file_bytes, file.stored_bytes) == (1030, 1000)
    assert (file.score, file.agreement, file.ratio) == (59.5, 99.99, 1.0)


def test_files_that_are_gone_or_cut_short_are_written_once_more(tmp_path):
    held = {"model.onnx": 3, "model.tflite": 2}
    contents = {
        "model.json": json.dumps({"file_bytes": held, "graph_bytes": {}}),
        "parity.json": json.dumps({"miou": {}, "agreement": {}}),
        **{"model.onnx": "abc", "model.tflite": "de", "model_float.onnx": "f"},
        "model_float.tflite": "g",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    assert export_stage._missing(tmp_path, "miou") == []
    (tmp_path / "model.onnx").write_text("ab")
    (tmp_path / "model_float.tflite").unlink()
    assert export_stage._missing(tmp_path, "miou") == ["model.onnx", "model_float.tflite"]


OPTION = "session.x64quantprecision=1"


@pytest.mark.parametrize(
    ("differ", "changes", "told"),
    [
        ((0, 0), {}, "no code differs in the images compared, so two classes are almost"),
        ((0, 7), {}, "simulated: codes differ from second on; see docs/export.md"),
        (
            (3, 7),
            {"saturates": True},
            "simulated: sums of bytes saturate in onnxruntime on this CPU, ",
        ),
        ((3, 7), {"option": OPTION}, f"model.onnx: sums .* unless a session sets {OPTION}"),
    ],
)
def test_a_file_that_agrees_little_says_why(differ, changes, told, tmp_path, caplog):
    export_stage._warn_of_option.cache_clear()
    runtime = runtimes.onnxruntime()._replace(option="", saturates=False)._replace(**changes)
    name = "model.onnx"
    computed = {
        "picture": (8, 8),
        "miou": {name: 20.0},
        "agreement": {"jax_int8": {name: 97.0}},
        "layers": [
            {"name": layer, name: {"differ": count}}
            for layer, count in zip(("first", "second"), differ, strict=True)
        ],
    }
    for folder in ("teacher", "subnet"):
        file = describe.File(size.ONNX_QDQ, 1000, "")
        export_stage._log(
            segmentation.task(tuple("abcd")), tmp_path / folder, {name: file}, computed, (runtime,)
        )
    lines = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert (
        sum("teacher: model.onnx gives only 97.00 % of the predictions" in one for one in lines)
        == 1
    )
    found = [one for one in lines if re.search(told, one)]
    assert len(found) == (1 if "option" in changes else 2), lines
