import shutil

import numpy as np
import pytest
from PIL import Image

from in_files import refusal
from qnas_jax.data.batching import Dataset
from qnas_jax.data.folders import Folders
from qnas_jax.errors import InputError

CLASSES = ("ant", "bee", "cat")
COUNTS = {"train": (5, 2, 3), "val": (2, 2, 0)}
SIZE = (20, 30)  # height, width


def image_of(label, place, height=SIZE[0], width=SIZE[1]):
    rng = np.random.default_rng((label, place))
    return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture
def root(tmp_path):
    for split, counts in COUNTS.items():
        for label, (name, count) in enumerate(zip(CLASSES, counts, strict=True)):
            (tmp_path / split / name).mkdir(parents=True)
            for place in range(count):
                file = tmp_path / split / name / f"{place:03d}.png"
                Image.fromarray(image_of(label, place)).save(file)
    return tmp_path


def opened(root, split="train", count=0, height=SIZE[0], width=SIZE[1]):
    return Folders(str(root), split, height, width, count)


def test_classes_are_the_folders_and_take_turns(root):
    data = opened(root)
    assert isinstance(data, Dataset)
    assert (data.names, data.labels_per, len(data)) == (CLASSES, "image", 10)
    found = [int(data[i][1]) for i in range(10)]
    assert found == [0, 1, 2, 0, 1, 2, 0, 2, 0, 0]
    places = [0, 0, 0, 1, 1, 1, 2, 2, 3, 4]
    for i, (label, place) in enumerate(zip(found, places, strict=True)):
        np.testing.assert_array_equal(data[i][0], image_of(label, place))
        assert (data[i][1].shape, data[i][1].dtype) == ((), np.int32)
    some = opened(root, count=4)
    assert [int(some[i][1]) for i in range(4)] == [0, 1, 2, 0]
    val = opened(root, "val")
    assert val.names == CLASSES, "also where the split lacks a class"
    assert [int(val[i][1]) for i in range(4)] == [0, 1, 0, 1]


@pytest.mark.parametrize(("height", "width"), [(40, 40), (10, 40), (41, 7)])
def test_the_middle_of_an_image_that_covers_the_size_is_taken(root, height, width):
    """Against another order of the same: scale the whole, then crop."""
    rows, columns = np.mgrid[:64, :96]
    smooth = np.stack([rows * 3, columns * 2, rows + columns], -1).astype(np.uint8)
    Image.fromarray(smooth).save(root / "train" / "ant" / "000.png")
    found = opened(root, height=height, width=width)[0][0]
    scale = max(height / 64, width / 96)
    scaled = round(96 * scale), round(64 * scale)
    whole = np.asarray(Image.fromarray(smooth).resize(scaled, Image.Resampling.BILINEAR))
    top, left = (whole.shape[0] - height) // 2, (whole.shape[1] - width) // 2
    expected = whole[top : top + height, left : left + width]
    assert found.shape == (height, width, 3)
    inner = np.abs(found.astype(int) - expected)[1:-1, 1:-1]
    assert inner.max() <= 0.55 * 3 / scale + 1, "they differ by less than a pixel's shift"


def test_what_systems_leave_is_no_image_and_no_class(root):
    before = opened(root).content()
    for name in ("._000.png", ".DS_Store", "Thumbs.db", "notes.txt"):
        (root / "train" / "ant" / name).write_bytes(b"\x00\x05\x16\x07")
        (root / "train" / name).write_bytes(b"")
    for folder in ("train/@eaDir", "train/ant/@eaDir", "train/.cache", "val/__MACOSX"):
        (root / folder).mkdir()
        (root / folder / "000.png").write_bytes(b"a preview")
    assert opened(root).names == CLASSES
    assert opened(root).content() == before
    opened(root).check()
    opened(root, "val").check()


def test_grey_becomes_rgb_and_names_may_end_in_capitals(root):
    grey = image_of(0, 0)[..., 0]
    (root / "train" / "ant" / "000.png").unlink()
    Image.fromarray(grey).save(root / "train" / "ant" / "000.JPG", format="png")
    found = opened(root)
    found.check()
    np.testing.assert_array_equal(found[0][0], np.repeat(grey[..., None], 3, -1))


def first(root):
    return root / "train" / "ant" / "000.png"


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "I;16"])
def test_what_would_lose_something_is_refused_before_a_run(root, mode):
    if mode == "I;16":
        Image.fromarray(np.zeros(SIZE, np.uint16)).save(first(root))
    else:
        content = Image.open(first(root)).convert(mode)
        content.save(first(root), format="jpeg" if mode == "CMYK" else "png")
    message = refusal(opened(root).check)
    assert message.startswith(f"{first(root)}: is {mode}")
    assert "must be RGB or L" in message
    assert refusal(lambda: opened(root)[0]) == message


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_damaged_and_cut_files_are_named_before_a_run(root, suffix, damage):
    file = root / "train" / "ant" / f"zero.{suffix}"
    Image.fromarray(image_of(0, 0, 90, 90)).save(file)
    opened(root).check()
    content = file.read_bytes()
    damaged = {"empty": b"", "cut": content[:-60], "text": b"<html>not found</html>"}
    file.write_bytes(damaged[damage])
    assert refusal(opened(root).check).startswith(f"{file}: cannot be read (")


def test_of_many_the_first_is_named_and_the_rest_counted(root):
    for place in (0, 2, 3):
        (root / "train" / "ant" / f"{place:03d}.png").write_bytes(b"")
    message = refusal(opened(root).check)
    assert message.startswith(f"{first(root)}: cannot be read (")
    assert message.endswith("; 2 more images cannot be used")


def test_missing_and_unknown_folders_are_named(root, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    rule = "no such folder; data.root must hold train/CLASS and val/CLASS"
    assert refusal(lambda: opened(empty)) == f"{empty}/train: {rule}"
    (empty / "train").mkdir()
    rule = f"{empty}/train: holds no folder; it must hold one for each class"
    assert refusal(lambda: opened(empty)) == rule
    (root / "val" / "dog").mkdir()
    expected = f"{root}/val/dog: {root}/train has no such class"
    assert refusal(lambda: opened(root, "val")) == expected
    (root / "train" / "dog").mkdir()
    assert refusal(lambda: opened(root)).startswith(f"{root}/train/dog: holds no image (.png, ")
    expected = f"data.val_images=5: {root}/val holds 4"
    assert refusal(lambda: opened(root, "val", 5)) == expected


def test_the_content_is_the_same_wherever_it_lies(root, tmp_path_factory):
    copy = tmp_path_factory.mktemp("scratch") / "copy"
    shutil.copytree(root, copy)
    before = opened(root).content()
    assert opened(copy).content() == before
    assert opened(copy, count=9).content() != before
    (copy / "train" / "ant" / "000.png").rename(copy / "train" / "bee" / "002.png")
    assert opened(copy).content() != before, "another class"
    content = bytearray(first(root).read_bytes())
    content[-14] ^= 1
    first(root).write_bytes(content)
    assert opened(root).content() != before


def test_a_single_class_is_refused(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / split / "cat" / "a.png")
    with pytest.raises(InputError, match="train: holds one class, must hold at least two"):
        Folders(str(tmp_path), "train", 8, 8)
