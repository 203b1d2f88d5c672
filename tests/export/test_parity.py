import json
import pathlib

import numpy as np
import pytest

from qnas_jax import metrics
from qnas_jax.errors import InputError
from qnas_jax.export import describe, fold, interpret, parity
from qnas_jax.export.onnx import write as onnx_file
from qnas_jax.hardware import size
from qnas_jax.nn import policy
from qnas_jax.nn.trace import trace
from qnas_jax.run import artefacts
from qnas_jax.tasks import segmentation


def test_differences_are_counted_and_located():
    a, b = np.zeros((2, 3, 4, 5), np.uint8), np.zeros((2, 3, 4, 5), np.uint8)
    assert parity.difference(a, b) == {"differ": 0}
    b[1, 2, 0, 4], b[1, 0, 3, 1] = 255, 3
    found = {"differ": 2, "largest": 255, "first": [1, 0, 3, 1]}
    assert parity.difference(a, b) == parity.difference(b, a) == found


def test_a_changed_code_is_reported_in_its_layer(int8):
    exact = fold.with_bias_codes(int8.variables, int8.network)
    rounded, images = {**exact, "quant": int8.quant}, int8.images
    simulated = parity.simulate(int8.model, int8.network, rounded, images)
    assert set(simulated) == {k for k, t in int8.network.tensors().items() if t.grid}
    computed = interpret.run(int8.network, images)
    changed = {name: value.copy() for name, value in computed.items()}
    changed["encoder/stem"][0, 1, 2, 3] ^= 64
    rows = parity.layers(int8.network, simulated, {"integer": computed, "file": changed})
    assert rows[0]["file"] == {"differ": 1, "largest": 64, "first": [0, 1, 2, 3]}
    summary = dict(parity.summary(rows))
    assert summary["file"]["differ"] == summary["file"]["layers"] == 1
    assert summary["file"]["codes"] == sum(row["codes"] for row in rows)
    assert set(summary) == {"own_rounding", "simulation", "file"}


class _Images:
    """Five images whose first channel holds the labels."""

    images = np.random.default_rng(0).integers(0, 4, (5, 6, 7, 3)).astype(np.uint8)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        label = self.images[index, ..., 0].copy()
        label[0, 0] = metrics.IGNORE
        return self.images[index], label


def test_miou_and_agreement_of_class_maps():
    sources = {
        "right": lambda images: images[..., 0],
        "other": lambda images: images[..., 1],
        "again": lambda images: images[..., 0],
    }
    task = segmentation.task(tuple("abcd"))
    miou, agreement = parity.class_maps(sources, _Images(), 2, task)
    assert miou["right"] == miou["again"] == 100
    labels = np.stack([label for _, label in map(_Images().__getitem__, range(5))])
    matrix = metrics.confusion(labels, _Images.images[..., 1], 4)
    assert miou["other"] == pytest.approx(metrics.mean_iou(matrix), abs=1e-4)
    equal = np.mean(_Images.images[..., 0] == _Images.images[..., 1])
    assert agreement["right"] == {"other": pytest.approx(100 * equal, abs=1e-4), "again": 100}


def test_a_file_that_loses_too_much_miou_is_refused():
    miou = {"model.onnx": 60.0, "jax_quantized": 61.5}
    place, names = pathlib.Path("export/teacher/parity.json"), ("model.onnx", "jax_quantized")
    parity.check(place, "mIoU", miou, *names, 1.5)
    parity.check(place, "mIoU", {**miou, "model.onnx": 70.0}, *names, 0.0)
    for most, bad in ((1.4, miou), (50.0, {**miou, "model.onnx": float("nan")})):
        with pytest.raises(InputError, match=r"json: model\.onnx has .* export\.max_drop="):
            parity.check(place, "mIoU", bad, *names, most)


@pytest.mark.parametrize("name", ["int8", "mixed"])
def test_the_description_has_the_bytes_of_the_size_tables(name, request, tmp_path):
    case = request.getfixturevalue(name)
    model = onnx_file.model(case.network)
    files = {
        "model.onnx": describe.File(size.ONNX_QDQ, model.ByteSize(), "VNNI"),
        "model.tflite": describe.File(size.TFLITE, 10**6, "XNNPACK"),
    }
    found = describe.describe(case.network, files)
    artefacts.write_json(tmp_path / "model.json", found)
    assert json.loads((tmp_path / "model.json").read_text()) == found
    assert found["exact_with"] == {"model.onnx": "VNNI", "model.tflite": "XNNPACK"}
    bits = policy.w_bits(case.quant)
    for conv, layer in zip(
        sorted(trace(case.model, case.images.shape[1:]).convs),
        sorted(found["layers"], key=lambda layer: layer["name"]),
        strict=True,
    ):
        assert layer["name"] == conv.name
        assert layer["macs"] == conv.macs
        assert layer["w_bits"] == bits[conv.name]
        assert layer["size_bytes"] == size.conv_bytes(conv, bits[conv.name])
        container = 4 if layer["w_bits"] <= 4 else 8
        assert layer["stored_bytes"] == {
            "model.onnx": size.conv_bytes(conv, container),
            "model.tflite": conv.weights + 12 * conv.out_channels,
        }
        assert layer["w_container"] == {"model.onnx": f"int{container}", "model.tflite": "int8"}
    # Bytes of the scales, weights and biases in the file's initializers.
    held = sum(
        len(c.raw_data)
        for c in model.graph.initializer
        if (c.dims and c.data_type not in (7, 1)) or (len(c.dims) == 1 and c.data_type == 1)
    )
    assert 0 <= found["stored_bytes"]["model.onnx"] - held < 0.01 * held, "equal ones once"
    channels = {conv.out_channels for conv in trace(case.model, case.images.shape[1:]).convs}
    zero_points = {"model.onnx": 0, "model.tflite": 8 * sum(channels)}
    for name, file in files.items():
        of_layers = sum(layer["stored_bytes"][name] for layer in found["layers"])
        assert found["stored_bytes"][name] == of_layers + zero_points[name]
        assert found["file_bytes"][name] == file.file_bytes
        assert found["graph_bytes"][name] == file.file_bytes - found["stored_bytes"][name]
