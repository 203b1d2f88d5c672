"""Each value of `data.source` opens its reader."""

import dataclasses
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

import in_files
from in_files import refusal
from qnas_jax.data.batching import Augmentation, Cached, Dataset, training_batch
from qnas_jax.run import config
from qnas_jax.stages import sources


def settings(source, **changes):
    counts = {"train_images": 14, "val_images": 3}
    return dataclasses.replace(config.Data(source, height=32, width=64, **counts), **changes)


@pytest.mark.parametrize(
    ("source", "classes", "labels_per"),
    [
        ("streets", 19, "pixel"),
        ("cityscapes", 19, "pixel"),
        ("objects", 12, "image"),
        ("digits", 10, "image"),
        ("folder", 2, "image"),
    ],
)
def test_both_splits_are_opened(source, classes, labels_per, tmp_path):
    if source == "digits":
        pytest.importorskip("sklearn")
    if source == "cityscapes":
        for split in in_files.COUNTS:
            in_files.write(tmp_path, split)
    if source == "folder":
        for i in range(40):
            file = tmp_path / ("train", "val")[i % 2] / f"class{i % 4 // 2}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((9, 9, 3), i, np.uint8)).save(file)
    for split, count in (("train", 14), ("val", 3)):
        given = settings(source, root=str(tmp_path))
        given.check()
        data = sources.opened(given, split)
        assert isinstance(data, Dataset)
        assert (len(data), len(data.names), data.labels_per) == (count, classes, labels_per)
        data.check()
        image, label = data[count - 1]
        assert (image.shape, image.dtype) == ((32, 64, 3), np.uint8)
        expected = ((32, 64), np.uint8) if labels_per == "pixel" else ((), np.int32)
        assert (label.shape, label.dtype) == expected
        assert label.max() < classes or labels_per == "pixel"
        assert bool(data.content()) == (source not in config.RENDERED)


def test_the_cache_has_the_bound_of_the_settings():
    for megabytes, kept in ((0, False), (1, True)):
        data = sources.opened(settings("objects", cache_mb=megabytes), "val")
        assert (data[1][0] is data[1][0]) == kept


PAGE = pathlib.Path(__file__).parents[2] / "docs" / "data.md"


def test_the_data_set_that_the_documentation_shows_is_one(tmp_path):
    code, *_ = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    written = {}
    exec(code, written)
    npz = written["Npz"]
    assert refusal(lambda: npz(str(tmp_path), "val", 40, 40)).startswith(
        f"{tmp_path}/val.npz: no such file"
    )
    images = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3)).astype(np.uint8)
    np.savez(tmp_path / "train.npz", images=images, labels=np.array([0, 1, 0, 1, 1, 1]))
    data = npz(str(tmp_path), "train", 40, 40)
    data.check()
    assert isinstance(data, Dataset)
    assert len(npz(str(tmp_path), "train", 40, 40, 4)) == 4
    assert "data.height=48" in refusal(lambda: npz(str(tmp_path), "train", 48, 40))
    batch = training_batch(Cached(data, 1), 0, 0, 6, Augmentation((32, 32), (1.0, 1.0)))
    assert sorted(batch.labels.tolist()) == [0, 0, 1, 1, 1, 1]
    before = data.content()
    np.savez(tmp_path / "train.npz", images=images, labels=np.array([0, 1, 0, 1, 1, 2]))
    assert npz(str(tmp_path), "train", 40, 40).content() != before
    assert refusal(npz(str(tmp_path), "train", 40, 40).check).endswith("labels must lie in 0..1")
