"""Reading what TFDS prepared. The sets are written here, with TFDS's own metadata."""

import concurrent.futures
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

import official_archives
from official_archives import encoded
from qnas_jax.data import cityscapes
from qnas_jax.data.cityscapes import Cityscapes
from qnas_jax.data.tfds import Tfds, prepare
from tfds_sets import CLASSES, PIXELS, classes, opened, pixels, random, refusal, write


@pytest.mark.parametrize("form", ["tfrecord", "array_record", "parquet"])
def test_all_formats_give_the_same_by_number_and_in_threads(tmp_path, form):
    write(tmp_path, PIXELS, {"train": pixels(), "test": pixels(seed=1)}, form=form)
    images, masks = random(5)
    data = opened(tmp_path)
    assert (len(data), data.labels_per) == (5, "pixel")
    order = [4, 0, 2, 3, 1] * 8
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for place, (image, label) in zip(order, pool.map(data.__getitem__, order), strict=True):
            np.testing.assert_array_equal(image, images[place])
            np.testing.assert_array_equal(label, masks[place])
            assert image.dtype == label.dtype == np.uint8
    data.check()
    with pytest.raises(IndexError):
        data[5]
    np.testing.assert_array_equal(opened(tmp_path, "val")[0][0], random(5, seed=1)[0][0])
    assert len(opened(tmp_path, count=2)) == 2


def test_labels_of_images_are_numbers_with_names(tmp_path):
    write(tmp_path, CLASSES, {"train": classes()})
    data = opened(tmp_path)
    assert (data.labels_per, data.names) == ("image", ("cat", "dog", "emu"))
    assert [int(data[place][1]) for place in range(5)] == [0, 1, 2, 0, 1]
    assert data[0][1].dtype == np.int32 and data[0][1].shape == ()
    data.check()


def test_images_with_a_class_are_cut_at_both_ends_and_labels_of_pixels_are_not(tmp_path):
    image = np.zeros((6, 16, 3), np.uint8)
    image[:, 5:11] = np.arange(6 * 6 * 3).reshape(6, 6, 3)
    write(tmp_path, CLASSES, {"train": [{"image": encoded(image), "label": 0}]})
    np.testing.assert_array_equal(opened(tmp_path, height=6, width=6)[0][0], image[:, 5:11])
    np.testing.assert_array_equal(opened(tmp_path, height=6, width=16)[0][0], image)
    assert opened(tmp_path, height=20, width=4)[0][0].shape == (20, 4, 3)
    mask = np.arange(6 * 16, dtype=np.uint8).reshape(6, 16)
    example = {"image": encoded(image), "mask": encoded(mask)}
    write(tmp_path, PIXELS, {"train": [example]}, "masks")
    data = opened(tmp_path, name="masks", height=3, width=8)
    np.testing.assert_array_equal(data[0][1], mask[1::2, 1::2])
    assert len(data.names) == 6 * 16


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same scenes in Cityscapes' folders and prepared from archives."""
    root = tmp_path_factory.mktemp("both")
    for split, name, image, train_ids in official_archives.scenes():
        cityscapes.write(str(root / "folders"), split, name, image, train_ids)
    official_archives.cityscapes(root / "manual")
    prepare.prepare("cityscapes", root / "tfds", root / "manual")
    return root


@pytest.mark.parametrize(("split", "size"), [("val", (1024, 2048)), ("train", (60, 100))])
def test_cityscapes_is_the_same_as_from_its_folders_both_ways(both, tmp_path, split, size):
    of_tfds = Tfds(str(both / "tfds"), "cityscapes", split, *size)
    of_folders = Cityscapes(str(both / "folders"), split, *size)
    assert len(of_tfds) == len(of_folders) == official_archives.CITIES[split][1]
    for place, (image, train_ids) in enumerate(of_folders):
        np.testing.assert_array_equal(of_tfds[place][0], image)
        np.testing.assert_array_equal(of_tfds[place][1], train_ids)
        cityscapes.write(str(tmp_path), split, f"a_{place:06d}_000000", *of_tfds[place])
    again = Cityscapes(str(tmp_path), split, *size)
    for place in range(len(again)):
        for found, expected in zip(again[place], of_folders[place], strict=True):
            np.testing.assert_array_equal(found, expected)
    assert of_tfds.names[:2] == ("road", "sidewalk") and len(of_tfds.names) == 19
    of_tfds.check()


def test_names_of_pixels_come_from_the_set_or_from_all_its_labels(tmp_path):
    named = {**PIXELS, "mask": tfds.features.LabeledImage(labels=["sky", "sea", "land", "ice"])}
    write(tmp_path, named, {"train": pixels()}, "named")
    assert opened(tmp_path, name="named").names == ("sky", "sea", "land", "ice")
    examples = pixels(20)
    mask = np.full((6, 10), 255, np.uint8)
    mask[3, 3] = 7  # in one image alone
    examples[17]["mask"] = encoded(mask)
    write(tmp_path, PIXELS, {"train": examples, "validation": pixels()})
    assert opened(tmp_path).names == opened(tmp_path, "val").names == tuple("01234567")
    assert (opened(tmp_path)[17][1] == mask).all()


def test_what_a_data_set_itself_names_as_label_is_taken(tmp_path):
    features = {**PIXELS, "label": CLASSES["label"], "species": CLASSES["label"]}
    examples = [{**example, "label": 1, "species": 2} for example in pixels()]
    write(tmp_path, features, {"train": examples}, supervised_keys=("image", "species"))
    assert int(opened(tmp_path)[0][1]) == 2
    write(tmp_path, features, {"train": examples}, "open")
    assert opened(tmp_path, name="open").labels_per == "pixel"
    without = [{k: v for k, v in example.items() if k != "mask"} for example in examples]
    del features["mask"]
    write(tmp_path, features, {"train": without}, "two")
    assert int(opened(tmp_path, name="two")[0][1]) == 1, "the one called label"


def test_grey_and_palette_and_transparent_images_are_read_in_colour(tmp_path):
    grey = np.arange(60, dtype=np.uint8).reshape(6, 10)
    transparent = np.dstack([random(1)[0][0], grey])
    examples = [{"image": encoded(array), "label": 0} for array in (grey, transparent)]
    write(tmp_path, CLASSES, {"train": examples})
    np.testing.assert_array_equal(opened(tmp_path)[0][0], np.dstack([grey] * 3))
    np.testing.assert_array_equal(opened(tmp_path)[1][0], transparent[..., :3])


def test_the_latest_version_and_the_named_config_are_taken(tmp_path):
    for version in ("2.0.0", "10.0.0", "9.1.0"):
        write(tmp_path, CLASSES, {"train": classes()}, "mine/a", version=version)
    assert opened(tmp_path).folder == tmp_path / "mine/a/10.0.0"
    assert opened(tmp_path, name="mine:2.0.0").folder == tmp_path / "mine/a/2.0.0"
    write(tmp_path, CLASSES, {"train": classes()}, "mine/b")
    found = refusal(lambda: opened(tmp_path))
    assert found == f"data.name=mine: {tmp_path} holds several; name one of ['mine/a', 'mine/b']"
    assert opened(tmp_path, name="mine/b").folder == tmp_path / "mine/b/1.0.0"
    found = refusal(lambda: opened(tmp_path, name="../mine"))
    assert found == "data.name='../mine': must be NAME, NAME/CONFIG or NAME/CONFIG:VERSION"


def test_content_is_that_of_the_files_wherever_they_lie(tmp_path):
    folder = write(tmp_path / "a", CLASSES, {"train": classes(), "test": classes(2)})
    content = opened(tmp_path / "a").content()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert opened(tmp_path / "b").content() == content
    others = {opened(tmp_path / "a", "val").content(), opened(tmp_path / "a", count=3).content()}
    write(tmp_path / "c", CLASSES, {"train": classes()}, version="1.0.1")
    others.add(opened(tmp_path / "c").content())
    path = next(folder.glob("mine-train.tfrecord-00001*"))
    path.write_bytes(path.read_bytes()[:-5] + b"?" + path.read_bytes()[-4:])
    others.add(opened(tmp_path / "a").content())
    assert len(others - {content}) == 4
