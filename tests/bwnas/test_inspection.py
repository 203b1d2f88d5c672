"""What is refused before the first stage begins."""

import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

import chip
from in_files import COUNTS, in_files, refusal
from qnas_jax.bwnas import inspection, pipeline
from qnas_jax.hardware import measured
from qnas_jax.nn import init
from qnas_jax.stages import train as train_stage


@pytest.fixture
def smoke():
    return chip.smoke()


@pytest.fixture
def on_disk(smoke, tmp_path):
    """The smoke config with images that lie in files."""
    return in_files(smoke, tmp_path / "cs")


def begun(config, tmp_path):
    """Begins a run; its teacher must not be reached."""
    return pipeline.begin(config, tmp_path / "run")


@pytest.fixture
def no_training(monkeypatch):
    def trained(*_):
        raise AssertionError("the first stage was begun")

    monkeypatch.setattr(train_stage, "train_teacher", trained)
    monkeypatch.setattr(pipeline.dry_run, "dry_run", lambda *_: None)


SMALL = {"network.strides": (2, 2, 2, 2, 1, 1, 1), "data.width": 32, "train.crop": (32, 32)}
AT_1X1 = "gives a map of 1 x 1 pixel and statistics are of 1 image, so the variance of this one"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train.batch": 1}, "train.batch=1: aspp/pool gives"),
        (SMALL | {"supernet.batch": 1}, "supernet.batch=1: encoder/block"),
        (SMALL | {"supernet.parts": 4}, "must be at least 8 for supernet.parts=4"),
        (SMALL | {"data.val_images": 1}, "data.val_images=1: encoder/block"),
        (SMALL | {"lut.calibration_images": 1}, "lut.calibration_images=1: encoder/block"),
        (SMALL | {"lut.images": 1}, "lut.images=1: encoder/block"),
        ({"quantize.images": 1, "quantize.norms": True}, "quantize.images=1: aspp/pool gives"),
        ({"quantize.images": 1, "retrain.qat_steps": 2}, "quantize.images=1: aspp/pool gives"),
        (
            SMALL | {"train.crop": (64, 64), "supernet.batch": 1},
            "supernet.batch=1: encoder/block3/layer0/depthwise gives",
        ),
    ],
)
def test_a_statistic_of_one_value_is_refused(smoke, tmp_path, no_training, settings, message):
    change(smoke, settings)
    found = refusal(lambda: begun(smoke, tmp_path))
    assert message in found
    assert AT_1X1 in found


@pytest.mark.parametrize(
    "settings",
    [
        {"train.batch": 2},
        {"supernet.batch": 1, "lut.calibration_images": 1, "lut.images": 1, "data.val_images": 1},
        {"quantize.images": 1, "run.eval_batch": 1},
        SMALL | {"supernet.parts": 2},
    ],
)
def test_a_statistic_of_more_values_is_allowed(smoke, tmp_path, settings):
    change(smoke, settings)
    laid_out = chip.prepared(smoke, tmp_path)
    inspection.check_norms(laid_out.config, laid_out.problem)


def change(config, settings):
    for name, value in settings.items():
        section, field = name.split(".")
        setattr(getattr(config, section), field, value)


def test_the_norm_that_is_named_is_the_one_without_variance(smoke, tmp_path):
    laid_out = chip.prepared(smoke, tmp_path)
    model = laid_out.problem.teacher
    variables = init.initialize(model, jax.random.key(0), (1, 32, 64, 3))
    images = jax.random.uniform(jax.random.key(1), (1, 32, 64, 3))
    apply = jax.jit(lambda *given: model.apply(*given, mutable=["batch_stats"])[1])
    found = apply(variables, images)["batch_stats"]
    flat = jax.tree_util.tree_leaves_with_path(found)
    lone = {
        "/".join(k.key for k in path[:-2])
        for path, leaf in flat
        if path[-1].key == "var" and not np.asarray(leaf).any()
    }
    assert lone == {"aspp/pool"}


def without(table, *places):
    lines = table.read_text().splitlines()
    table.write_text("\n".join(line for line in lines if not line.startswith(places)) + "\n")


@pytest.mark.parametrize("part", ["head", "stem"])
@pytest.mark.parametrize("costs", [("size_bytes",), ("size_bytes", "latency_ms")])
def test_a_table_without_a_fixed_part_is_refused_at_once(smoke, tmp_path, no_training, part, costs):
    laid_out = chip.prepared(smoke, tmp_path)
    table, conditions = tmp_path / "t.csv", ("onnxruntime", "1", "a board", 1)
    for place in laid_out.deployed.places:
        for op in laid_out.searched.ops:
            probe = measured.probe_key(place, op, 8, 8)
            measured.append(table, measured.Row(probe, 1.0, *[None] * 4, 9, None, *conditions))
    for name, convs in laid_out.deployed.parts.items():
        shape = max((conv.in_height, conv.in_width) for conv in convs)
        probe = measured.ProbeKey(name, "", *shape, 3, 8, 1, 1, 8, 8)
        measured.append(table, measured.Row(probe, 1.0, *[None] * 4, 9, None, *conditions))
    smoke.hardware.table, smoke.search.costs = str(table), costs
    chip.check_target(chip.prepared(smoke, tmp_path))
    without(table, part)
    expected = f"target 'none with {table}': nothing was measured for {part}, "
    assert refusal(lambda: begun(smoke, tmp_path)).startswith(expected)


@pytest.mark.parametrize("split", COUNTS)
@pytest.mark.parametrize("fault", ["alpha", "ignored"])
def test_images_are_looked_at_before_the_first_stage(on_disk, tmp_path, no_training, split, fault):
    root = pathlib.Path(on_disk.data.root)
    with pytest.raises(AssertionError, match="the first stage was begun"):
        begun(on_disk, tmp_path / "good")
    if fault == "alpha":
        file = sorted((root / "leftImg8bit" / split / "bonn").iterdir())[1]
        Image.open(file).convert("RGBA").save(file)
        expected = f"{file}: is RGBA, must be RGB"
    else:
        for file in (root / "gtFine" / split / "bonn").iterdir():
            Image.fromarray(np.zeros((32, 64), np.uint8)).save(file)
        images = f"all labels of {COUNTS[split]} images are ignored"
        expected = f"{root}/gtFine/{split}: {images}; "
    assert refusal(lambda: begun(on_disk, tmp_path)).startswith(expected)
    assert not (tmp_path / "run").exists(), "and nothing is left behind"


@pytest.mark.parametrize(
    ("image", "label", "wrong"),
    [
        (np.zeros((28, 30, 3), np.uint8), np.zeros((32, 64), np.uint8), "image uint8[28, 30, 3]"),
        (np.zeros((32, 64, 3), np.float32), np.zeros((32, 64), np.uint8), "image float32[32, 64,"),
        (
            np.zeros((32, 64, 3), np.uint8),
            np.zeros((32, 64), np.int64),
            "label int64[32, 64], must",
        ),
        (np.zeros((32, 64, 3), np.uint8), 3, "label int[], must be uint8[32, 64]"),
    ],
)
def test_what_an_own_data_set_gives_is_checked(smoke, image, label, wrong):
    class Own(list):
        names, labels_per = ("a", "b"), "pixel"

        def content(self):
            return ""

        def check(self):
            pass

    good = Own([(np.zeros((32, 64, 3), np.uint8), np.zeros((32, 64), np.uint8))])
    inspection.check_item(smoke.data, good)
    found = refusal(lambda: inspection.check_item(smoke.data, Own([(image, label)])))
    assert f"Own gives a first {wrong}" in found and "data.height=32, data.width=64" in found
