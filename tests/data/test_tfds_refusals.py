"""What is no data set of TFDS that can be read, and how it is said."""

import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

import official_archives
from official_archives import encoded
from qnas_jax.data.tfds import records
from qnas_jax.run import artefacts
from tfds_sets import CLASSES, PIXELS, classes, opened, pixels, random, refusal, write


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        ({"image": PIXELS["image"], "id": tfds.features.Text()}, "has no labels; needed are an"),
        ({"id": tfds.features.Text(), "label": CLASSES["label"]}, "has no images; needed are an"),
        ({**PIXELS, "other": PIXELS["mask"]}, "has several images that could be meant; needed"),
        (
            {**PIXELS, "mask": tfds.features.Image(shape=(None, None, 1), dtype=np.uint16)},
            "has a mask of uint16, must be uint8; needed",
        ),
        (
            {"image": PIXELS["image"], "a": CLASSES["label"], "b": CLASSES["label"]},
            "has several labels, none of them called label; needed",
        ),
    ],
)
def test_sets_of_another_kind_are_refused_with_their_features(tmp_path, features, reason):
    write(tmp_path, features, {"train": []})
    found = refusal(lambda: opened(tmp_path))
    assert found.startswith(f"data.name=mine: {reason}")
    for name, feature in features.items():
        assert f"{name}: {type(feature).__name__}" in found


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_damaged_metadata_are_named(tmp_path, file):
    folder = write(tmp_path, CLASSES, {"train": classes()})
    (folder / file).write_text((folder / file).read_text()[:40])
    found = refusal(lambda: opened(tmp_path))
    assert found.startswith(f"{folder}: its metadata cannot be read (")
    if file == "features.json":
        (folder / file).unlink()
        assert "its metadata cannot be read (" in refusal(lambda: opened(tmp_path))


def test_missing_splits_and_images_are_named(tmp_path):
    write(tmp_path, CLASSES, {"train": classes(), "extra": classes()})
    found = refusal(lambda: opened(tmp_path, "val"))
    expected = "data.name=mine: has no split validation or test; its splits are: extra, train"
    assert found == expected
    found = refusal(lambda: opened(tmp_path, count=6))
    assert found == "data.train_images=6: mine/1.0.0 train holds 5"


def test_what_is_not_prepared_says_how_to(tmp_path):
    root = tmp_path / "tfds"
    found = refusal(lambda: opened(root))
    assert found == f"data.root={root}: no such folder; it must be TFDS's data_dir"
    write(root, CLASSES, {"train": classes()}, "other/config")
    start = f"not prepared in data.root={root}"
    assert refusal(lambda: opened(root)) == (
        f"data.name=mine: {start}, which holds other; prepare it: tfds build mine --data_dir={root}"
    )
    command = f"qnas prepare --name=cifar10 --root={root}"
    found = refusal(lambda: opened(root, name="cifar10"))
    manual = root / "downloads" / "manual"
    assert found == (
        f"data.name=cifar10: {start}; put cifar-10-binary.tar.gz into {manual}, then: {command}"
    )
    official_archives.cifar10(manual)
    found = refusal(lambda: opened(root, name="cifar10"))
    assert found == (
        f"data.name=cifar10: {start}, but its archives are there; prepare it: {command}"
    )


@pytest.mark.parametrize("form", ["tfrecord", "array_record", "parquet"])
@pytest.mark.parametrize("damage", ["empty", "cut", "end", "missing"])
def test_a_damaged_file_is_named_before_a_run_begins(tmp_path, form, damage):
    folder = write(tmp_path, CLASSES, {"train": classes()}, form=form)
    path = next(folder.glob(f"mine-train.{form}-00001*"))
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: {"empty": 0, "cut": len(content) // 2, "end": -1}[damage]])
    found = refusal(lambda: opened(tmp_path).check())
    named = str(path) if damage == "missing" or form != "parquet" else str(folder)
    assert found.startswith(f"{named}: ")
    assert any(word in found for word in ("cut", "missing, a file of mine", "cannot be read ("))


def test_a_file_that_the_system_does_not_give_is_not_called_damaged(tmp_path, monkeypatch):
    folder = write(tmp_path, CLASSES, {"train": classes()}, form="array_record")
    path = next(folder.glob("mine-train*00001*"))

    class Failing:
        def ArrayRecordReader(self, path):
            raise RuntimeError(f"Input/output error; opening {path}")

    monkeypatch.setattr(records, "array_record", Failing)
    found = refusal(lambda: opened(tmp_path).check())
    assert found.endswith("cannot be read (Input/output error); try again")
    assert found.startswith(str(path.parent))


def test_a_file_of_more_records_is_refused(tmp_path):
    folder = write(tmp_path, CLASSES, {"train": classes()})
    first, second = sorted(folder.glob("mine-train*"))
    second.write_bytes(first.read_bytes() + second.read_bytes())
    found = refusal(lambda: opened(tmp_path).check())
    assert found.startswith(f"{second}: holds more than its 2 records")


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        ({"image": b"text", "mask": encoded(np.zeros((6, 10), np.uint8))}, "its image cannot be"),
        (
            {"image": encoded(random(1)[0][0])[:-30], "mask": encoded(random(1)[1][0])},
            "its image cannot be decoded (",
        ),
        (
            {"image": encoded(random(1)[0][0]), "mask": encoded(np.zeros((6, 9), np.uint8))},
            "its labels are 9 x 6 pixels, its image 10 x 6",
        ),
        (
            {"image": encoded(random(1)[0][0]), "mask": encoded(random(1)[0][0])},
            "its mask is of mode RGB, must be 8-bit numbers of classes",
        ),
        (
            {
                "image": encoded(np.zeros((6, 10), np.uint16)),
                "mask": encoded(np.zeros((6, 10), np.uint8)),
            },
            "its image is of mode I;16, must be 8-bit colours or greys",
        ),
    ],
)
def test_an_example_that_cannot_be_used_is_named(tmp_path, example, reason):
    folder = write(tmp_path, PIXELS, {"train": [*pixels(4), example]})
    found = refusal(lambda: opened(tmp_path).check())
    assert found.startswith(f"{folder}: example 4 of train: {reason}")


def test_labels_without_a_class_are_refused(tmp_path):
    ignored = [{**e, "mask": encoded(np.full((6, 10), 255, np.uint8))} for e in pixels()]
    folder = write(tmp_path, PIXELS, {"train": ignored, "validation": pixels()})
    found = refusal(lambda: opened(tmp_path).check())
    assert found.startswith(f"{folder}: all labels of the 5 images of split train are ignored")
    found = refusal(lambda: opened(tmp_path, "val").check())
    assert found.startswith(f"{folder}: example 0 of validation: label 3: labels lie in 0..0, or")
    none = [{**example, "label": -1} for example in classes()]
    folder = write(tmp_path, CLASSES, {"train": classes(), "test": none}, "none")
    found = refusal(lambda: opened(tmp_path, "val", "none").check())
    reason = "its class is -1, must lie in 0..2; this split has no labels"
    assert found == f"{folder}: example 0 of test: {reason}"
    mask = encoded(np.full((6, 10), 34, np.uint8))
    features = {"image_left": PIXELS["image"], "segmentation_label": PIXELS["mask"]}
    example = {"image_left": pixels(1)[0]["image"], "segmentation_label": mask}
    folder = write(tmp_path, features, {"train": [example]}, "cityscapes")
    found = refusal(lambda: opened(tmp_path, name="cityscapes").check())
    assert found == f"{folder}: example 0 of train: label id 34: label ids lie in 0..33"


def test_a_single_image_among_ignored_ones_is_enough(tmp_path):
    ignored = [{**e, "mask": encoded(np.full((6, 10), 255, np.uint8))} for e in pixels(40)]
    ignored[1] = pixels(1)[0]  # not among those that are looked at first
    write(tmp_path, PIXELS, {"train": ignored})
    opened(tmp_path).check()


def test_hidden_files_are_no_data_sets(tmp_path):
    folder = write(tmp_path, CLASSES, {"train": classes()})
    shutil.copytree(folder, folder.with_name("9.0.0.incomplete1"))
    shutil.copytree(folder, folder.parent / ".hidden" / "9.0.0")
    artefacts.write(tmp_path / "mine" / "._1.0.0", b"x")
    assert opened(tmp_path).folder == folder
