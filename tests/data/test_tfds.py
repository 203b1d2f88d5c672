"""Reading what TFDS prepared. The sets are written here, with TFDS's own metadata."""

import concurrent.futures
import pathlib
import shutil
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer, file_adapters, naming

import official_archives
from official_archives import encoded
from qnas_jax.data import cityscapes
from qnas_jax.data.cityscapes import Cityscapes
from qnas_jax.data.tfds import Tfds, prepare, records
from qnas_jax.errors import InputError
from qnas_jax.run import artefacts

PIXELS = {
    "image": tfds.features.Image(shape=(None, None, 3)),
    "mask": tfds.features.Image(shape=(None, None, 1)),
}
CLASSES = {
    "image": tfds.features.Image(shape=(None, None, 3)),
    "label": tfds.features.ClassLabel(names=["cat", "dog", "emu"]),
}
SHARDS = (3, 2)  # records of each file


def _frames(path, records):
    """TFRECORD, by hand; the checksums are not looked at."""
    with open(path, "wb") as file:
        for record in records:
            file.write(struct.pack("<Q4x", len(record)) + record + bytes(4))


def write(root, features, splits, name="mine", form="tfrecord", version="1.0.0", **about):
    """Writes a data set without code: `splits` are lists of examples."""
    folder = pathlib.Path(root) / name / version
    folder.mkdir(parents=True)
    features, infos = tfds.features.FeaturesDict(features), []
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    base = name.split("/")[0]
    for split, examples in splits.items():
        template = naming.ShardedFileTemplate(
            folder, dataset_name=base, split=split, filetype_suffix=form
        )
        counts = SHARDS if len(examples) == sum(SHARDS) else (len(examples),)
        at = 0
        for path, count in zip(template.sharded_filepaths(len(counts)), counts, strict=True):
            records = [
                serializer.serialize_example(features.encode_example(example))
                for example in examples[at : at + count]
            ]
            at += count
            if form == "tfrecord":
                _frames(path, records)
            else:
                adapter = file_adapters.ADAPTER_FOR_FORMAT[file_adapters.FileFormat(form)]
                adapter.write_examples(path, list(enumerate(records)))
        infos.append(tfds.core.SplitInfo(split, list(counts), 1, template))
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=infos,
        version=version,
        check_data=False,
        **about,
    )
    return folder


def random(count, height=6, width=10, seed=0):
    rng = np.random.default_rng(seed)
    shape = (count, height, width)
    return rng.integers(0, 256, (*shape, 3), np.uint8), rng.integers(0, 4, shape, np.uint8)


def pixels(count=5, **how):
    return [
        {"image": encoded(i), "mask": encoded(m)}
        for i, m in zip(*random(count, **how), strict=True)
    ]


def classes(count=5, **how):
    images = random(count, **how)[0]
    return [{"image": encoded(image), "label": n % 3} for n, image in enumerate(images)]


def opened(root, split="train", name="mine", height=6, width=10, count=0):
    return Tfds(str(root), name, split, height, width, count)


def refusal(make):
    with pytest.raises(InputError) as error:
        make()
    assert "\n" not in str(error.value)
    return str(error.value)


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
