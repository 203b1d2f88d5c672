"""A whole run on images of one class each, with a teacher twice as wide as its subnets."""

import json

import numpy as np
import pytest

from qnas_jax.bwnas import config, pipeline
from qnas_jax.data.streets import things

pytestmark = pytest.mark.slow  # two minutes: it compiles every stage


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder and the results of a small run that learns nothing."""
    workdir = tmp_path_factory.mktemp("objects")
    given = config.Config(
        data=config.Data(source="objects", height=32, width=32, train_images=12, val_images=12),
        network=config.Network(
            width=0.25, teacher_width=0.5, dilations=(1,) * 7, head_channels=16, dropout=0.1
        ),
        train=config.Train(steps=2, batch=4, optimizer="adamw", lr=1e-3, crop=(32, 32), flip=False),
        space=config.Space(kernels=(3,), expansions=(2, 3), depths=(1, 1, 1, 1, 1, 1)),
        supernet=config.Supernet(steps=2, batch=4, lr=(0.05,) * 6),
        lut=config.Lut(calibration_images=4, images=4, images_per_pass=4),
        quantize=config.Quantize(images=4),
        retrain=config.Retrain(subnets=1),
        export=config.Export(max_drop=100.0),
        run=config.Run(save_every=2, log_every=1, eval_batch=5),
    )
    return workdir, pipeline.run(given, workdir)


def test_results_name_top1_and_have_the_figures_of_every_network(run):
    workdir, results = run
    assert results["metric"] == "top1"
    for network in (results["teacher"], *results["subnets"]):
        assert {"fp32", "quantized", "size_bytes", "encoder_size_bytes", "file"} <= set(network)
        assert 0 <= network["quantized"] <= 100
        assert 0 < network["encoder_size_bytes"] < network["size_bytes"]
    held = json.loads((workdir / "teacher" / "metrics.json").read_text())
    assert held["top1_quantized"] == results["teacher"]["quantized"]
    assert held["top5_quantized"] >= held["top1_quantized"]
    assert len(held["class_accuracy_fp32"]) == len(things.NAMES) == 12


def test_subnets_have_the_projected_features_of_the_wide_teacher(run):
    workdir, results = run
    with np.load(workdir / "supernet" / "adapters.npz") as found:
        shapes = {name: found[name].shape for name in found.files}
    assert len(shapes) == 7 and all(wide >= narrow for wide, narrow in shapes.values())
    assert shapes["boundary1"] == (16, 8)
    assert results["subnets"][0]["size_bytes"] < results["teacher"]["size_bytes"] / 2


def test_files_give_the_classes_of_the_simulation(run):
    workdir, results = run
    for folder in ("teacher", results["subnets"][0]["subnet"]):
        parity = json.loads((workdir / "export" / folder / "parity.json").read_text())
        assert parity["agreement"]["jax_int8"]["model.onnx"] == 100.0
        assert parity["top1"]["model.onnx"] == parity["top1"]["jax_int8"]


def test_the_report_names_the_classes(run):
    workdir, _ = run
    page = (workdir / "report" / "index.html").read_text()
    assert "<th>top-1 accuracy float</th>" in page and "Accuracy by class" in page
    with np.load(workdir / "teacher" / "samples.npz") as samples:
        assert samples["quantized"].shape == (4,)
