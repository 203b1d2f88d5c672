import gc
import re
import shutil
import struct
import zlib
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from qnas_jax.data import cityscapes
from qnas_jax.data.cityscapes import Cityscapes
from qnas_jax.errors import InputError

NAMES = ("bonn_000000_000002", "aachen_000001_000019", "bonn_000000_000001")
IMAGE = "leftImg8bit/train/bonn/bonn_000000_000001_leftImg8bit.png"
LABEL = "gtFine/train/bonn/bonn_000000_000001_gtFine_labelIds.png"
HEIGHT, WIDTH = 6, 10


def random_pair(seed, height=HEIGHT, width=WIDTH):
    rng = np.random.default_rng(seed)
    train_ids = rng.choice(np.array([*range(19), 255], np.uint8), (height, width))
    return rng.integers(0, 256, (height, width, 3)).astype(np.uint8), train_ids


@pytest.fixture
def root(tmp_path):
    for seed, name in enumerate(NAMES):
        cityscapes.write(str(tmp_path), "train", name, *random_pair(seed))
    return tmp_path


def opened(root, split="train", count=0, height=HEIGHT, width=WIDTH):
    return Cityscapes(str(root), split, height, width, count)


def refusal(make):
    """The message with which something is refused, which is a single line."""
    with pytest.raises(InputError) as error:
        make()
    message = str(error.value)
    assert "\n" not in message
    return message


def test_what_was_written_is_read_in_order_of_the_names(root):
    data = opened(root)
    assert len(data) == 3
    for place, seed in enumerate((1, 2, 0)):  # aachen, then bonn's first and second
        for found, expected in zip(data[place], random_pair(seed), strict=True):
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == np.uint8


def test_files_lie_where_cityscapes_has_them_and_hold_label_ids(root):
    written = np.asarray(Image.open(root / LABEL))
    train_ids = random_pair(2)[1]
    assert (written[train_ids == 0] == 7).all()  # road
    assert (written[train_ids == 18] == 33).all()  # bicycle
    assert (written[train_ids == 255] == 4).all()  # static
    files = sorted(str(f.relative_to(root)) for f in root.rglob("*") if f.is_file())
    assert len(files) == 6, "and nothing else"
    assert IMAGE in files


def test_images_that_are_written_are_known_and_half_written_ones_are_not(root):
    assert cityscapes.exists(str(root), "train", NAMES[2])
    assert not cityscapes.exists(str(root), "val", NAMES[2])
    (root / LABEL).unlink()
    assert not cityscapes.exists(str(root), "train", NAMES[2])


def test_the_first_images_by_name_are_taken(tmp_path):
    names = [f"{city}_{i:06d}_000019" for city in ("ulm", "aachen", "jena") for i in range(8)]
    for name in np.random.default_rng(0).permutation(names).tolist():
        cityscapes.write(str(tmp_path), "train", name, *random_pair(0))
    for count, expected in ((5, sorted(names)[:5]), (24, sorted(names)), (0, sorted(names))):
        data = opened(tmp_path, count=count)
        found = [f.name.removesuffix("_leftImg8bit.png") for f in data.images]
        assert found == expected


def test_images_are_resized_and_labels_never_mixed(tmp_path):
    image = np.full((8, 12, 3), 50, np.uint8)
    image[:, 6:] = 150
    train_ids = np.where(image[..., 0] == 50, 3, 17).astype(np.uint8)
    cityscapes.write(str(tmp_path), "train", NAMES[0], image, train_ids)
    small = opened(tmp_path, height=4, width=6)[0]
    np.testing.assert_array_equal(small[1], train_ids[::2, ::2])
    assert (small[0][:, 0] == 50).all() and (small[0][:, -1] == 150).all()
    large, large_ids = opened(tmp_path, height=16, width=36)[0]
    np.testing.assert_array_equal(large_ids, train_ids.repeat(2, 0).repeat(3, 1))
    middle = large[:, 16:20].astype(int)
    assert (np.diff(middle, axis=1) > 0).all(), "the image's edge gets soft"


def test_labels_with_a_palette_are_read_as_numbers(root):
    image, train_ids = opened(root)[1]
    indexed = Image.open(root / LABEL).convert("L")
    indexed.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    assert indexed.mode == "P"
    indexed.save(root / LABEL)
    again = opened(root)[1]
    np.testing.assert_array_equal(again[1], train_ids)
    np.testing.assert_array_equal(again[0], image)


def test_a_missing_folder_says_what_is_expected(tmp_path):
    message = refusal(lambda: opened(tmp_path / "none"))
    assert message.startswith(f"{tmp_path}/none/leftImg8bit/train: no such folder; data.root must")
    assert "leftImg8bit/train and gtFine/train" in message


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "leftImg8bit" / "val" / "bonn").mkdir(parents=True)
    expected = f"{tmp_path}/leftImg8bit/val: holds no CITY/*_leftImg8bit.png"
    assert refusal(lambda: opened(tmp_path, "val")) == expected


def test_more_images_than_there_are_is_named_as_the_setting(root):
    expected = f"data.train_images=4: {root}/leftImg8bit/train holds 3"
    assert refusal(lambda: opened(root, count=4)) == expected


def test_an_image_without_labels_is_named_when_the_data_set_is_opened(root):
    (root / LABEL).unlink()
    expected = f"{root / LABEL}: missing, the labels of {NAMES[2]}_leftImg8bit.png"
    assert refusal(lambda: opened(root)) == expected


@pytest.mark.parametrize("file", [IMAGE, LABEL])
@pytest.mark.parametrize("damage", ["empty", "cut", "text", "bytes"])
def test_a_damaged_file_is_named_when_it_is_read(root, file, damage):
    content = (root / file).read_bytes()
    middle = len(content) // 2
    damaged = {
        "empty": b"",
        "cut": content[: middle + 8],
        "text": b"<html>not found</html>",
        "bytes": content[: middle - 4] + bytes(16) + content[middle + 12 :],
    }
    (root / file).write_bytes(damaged[damage])
    data = opened(root)
    data[0]
    assert refusal(lambda: data[1]).startswith(f"{root / file}: cannot be read (")
    gc.collect()  # a file that was left open is to be found here, not in another test


@pytest.mark.parametrize(
    ("file", "mode", "rule"),
    [
        (IMAGE, "L", "is L, must be RGB"),
        (IMAGE, "RGBA", "is RGBA, must be RGB"),
        (LABEL, "RGB", "is RGB, must be L or P"),
        (LABEL, "1", "is 1, must be L or P"),
    ],
)
def test_an_image_of_another_kind_is_named(root, file, mode, rule):
    Image.open(root / file).convert(mode).save(root / file)
    assert refusal(lambda: opened(root)[1]) == f"{root / file}: {rule}"


def test_a_label_id_that_does_not_exist_is_named_with_its_file(root):
    Image.fromarray(np.full((HEIGHT, WIDTH), 34, np.uint8)).save(root / LABEL)
    expected = f"{root / LABEL}: label id 34: label ids lie in 0..33"
    assert refusal(lambda: opened(root)[1]) == expected


def test_labels_of_another_size_than_their_image_are_named(root):
    Image.fromarray(np.zeros((HEIGHT, WIDTH + 1), np.uint8)).save(root / LABEL)
    message = refusal(lambda: opened(root)[1])
    assert re.fullmatch(
        re.escape(f"{root / LABEL}: ") + "is 11 x 6 pixels, its image 10 x 6", message
    )


def png(file, depth, colour, rows):
    """A PNG file of a depth and a kind that Pillow does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    width = len(rows[0]) * 8 // depth // (3 if colour == 2 else 1)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b""))


def test_what_systems_leave_among_the_images_is_skipped(root):
    expected = [array for pair in opened(root) for array in pair]
    for file in (IMAGE, LABEL):
        path = root / file
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")
        (path.parent / "@eaDir").mkdir()
        (path.parents[1] / "@eaDir").mkdir()
        (path.parents[1] / "@eaDir" / path.name).write_bytes(b"a preview")
        (path.parents[1] / ".DS_Store").write_bytes(b"")
    for found, wanted in zip([a for pair in opened(root) for a in pair], expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    opened(root).check()


def test_values_of_other_than_8_bits_are_refused_and_not_scaled(root):
    png(root / IMAGE, 16, 2, [bytes([0, 200] * 3 * WIDTH)] * HEIGHT)
    rule = f"{root / IMAGE}: is RGB stored as RGB;16B, must be RGB of 8 bits"
    assert refusal(opened(root).check) == refusal(lambda: opened(root)[1]) == rule
    cityscapes.write(str(root), "train", NAMES[2], *random_pair(2))
    png(root / LABEL, 4, 0, [bytes([0x11] * (WIDTH // 2))] * HEIGHT)  # id 1, scaled: 17, a pole
    rule = f"{root / LABEL}: is L stored as L;4, must be L or P of 8 bits"
    assert refusal(opened(root).check) == refusal(lambda: opened(root)[1]) == rule
    png(root / IMAGE, 16, 0, [bytes([0, 200] * WIDTH)] * HEIGHT)
    assert refusal(opened(root).check).startswith(f"{root / IMAGE}: is I;16 stored as I;16B,")


MANY = 50


@pytest.fixture
def many(tmp_path):
    """More pairs than are decoded."""
    for i in range(MANY):
        cityscapes.write(str(tmp_path), "val", f"bonn_{i:06d}_000000", *random_pair(i))
    return tmp_path


def pair_of(root, index, split="val"):
    data = opened(root, split)
    return data.images[index], data.label_files[index]


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "I;16", "CMYK"])
def test_headers_of_all_images_are_looked_at(many, mode):
    """Number 8 of 50 is not in the sample."""
    file = pair_of(many, 8)[0]
    if mode == "I;16":
        Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16)).save(file)
    else:
        content = Image.open(file).convert(mode)
        content.save(file, format="jpeg" if mode == "CMYK" else "png")
    assert refusal(opened(many, "val").check).startswith(f"{file}: is {mode}")


def test_sizes_of_all_labels_are_looked_at(many):
    image, label_file = pair_of(many, 8)
    Image.fromarray(np.zeros((HEIGHT, WIDTH + 1), np.uint8)).save(label_file)
    expected = f"{label_file}: is 11 x 6 pixels, its image 10 x 6"
    assert refusal(opened(many, "val").check) == expected
    image.write_bytes(b"")
    assert refusal(opened(many, "val").check).startswith(f"{image}: cannot be read (")


@pytest.mark.parametrize("place", [0, 1], ids=["image", "labels"])
def test_every_file_that_was_cut_short_is_found(many, place):
    file = pair_of(many, 8)[place]
    file.write_bytes(file.read_bytes()[:-60])
    assert refusal(opened(many, "val").check).startswith(f"{file}: cannot be read (")


def test_a_whole_file_with_something_after_it_is_read(many):
    file = pair_of(many, 8)[0]
    file.write_bytes(file.read_bytes() + b"appended by a camera")
    opened(many, "val").check()


def test_some_files_are_decoded(many):
    file = pair_of(many, MANY - 1)[1]
    Image.fromarray(np.full((HEIGHT, WIDTH), 34, np.uint8)).save(file)
    assert refusal(opened(many, "val").check) == f"{file}: label id 34: label ids lie in 0..33"


def test_a_split_without_a_pixel_that_counts_is_refused(many):
    ignored = Image.fromarray(np.full((HEIGHT, WIDTH), 4, np.uint8))
    for index in range(MANY):
        ignored.save(pair_of(many, index)[1])
    message = refusal(opened(many, "val").check)
    assert message.startswith(f"{many}/gtFine/val: all labels of 50 images are ignored; some pixel")
    one = np.full((HEIGHT, WIDTH), 4, np.uint8)
    one[0, 0] = 7
    Image.fromarray(one).save(pair_of(many, 8)[1])
    opened(many, "val").check()


def test_the_content_is_the_same_wherever_it_lies(many, tmp_path_factory):
    copy = tmp_path_factory.mktemp("scratch") / "copy"
    shutil.copytree(many, copy)
    found = opened(many, "val").content()
    for same in (copy, f"{many}/", many / ".." / many.name):
        assert opened(same, "val").content() == found
    assert opened(many, "val", count=40).content() != found


@pytest.mark.parametrize("change", ["name", "size", "bytes", "labels"])
def test_other_content_in_the_same_place_is_found(many, change):
    before = opened(many, "val").content()
    image, label_file = pair_of(many, 0 if change in ("bytes", "labels") else 8)
    if change == "name":
        image.rename(image.with_name("bonn_000008_000001_leftImg8bit.png"))
        label_file.rename(label_file.with_name("bonn_000008_000001_gtFine_labelIds.png"))
    elif change == "size":
        image.write_bytes(image.read_bytes() + b"\0")
    else:
        file = image if change == "bytes" else label_file
        content = bytearray(file.read_bytes())
        content[-14] ^= 1
        file.write_bytes(content)
    assert opened(many, "val").content() != before


def as_train_ids(root, split="train", rename=True, seeds=(1, 2, 0)):
    """Writes train ids in place of the label ids; of files in order of their names."""
    for file, seed in zip(opened(root, split).label_files, seeds, strict=True):
        name = file.name.replace("labelIds", "labelTrainIds") if rename else file.name
        Image.fromarray(random_pair(seed)[1]).save(file.with_name(name))
        if rename:
            file.unlink()


def test_train_ids_are_read_where_there_are_no_label_ids(root, caplog):
    before = [opened(root)[i] for i in range(3)]
    as_train_ids(root)
    with caplog.at_level("INFO"):
        data = opened(root)
    assert f"{root}/gtFine/train: labels are train ids, from *_gtFine_labelTrainIds" in caplog.text
    data.check()
    for i, (image, train_ids) in enumerate(before):
        np.testing.assert_array_equal(data[i][0], image)
        np.testing.assert_array_equal(data[i][1], train_ids)


def test_label_ids_come_first_where_there_are_both_as_in_the_archives(root):
    expected = opened(root).content()
    for file in opened(root).label_files:
        shutil.copy(file, file.with_name(file.name.replace("labelIds", "labelTrainIds")))
    assert opened(root).content() == expected


def test_train_ids_named_as_label_ids_are_refused_before_a_run(root):
    as_train_ids(root, rename=False)
    message = refusal(opened(root).check)
    rule = (
        "label id 255: label ids lie in 0..33; all values of this file are train ids (0..18, 255)"
    )
    assert message == f"{opened(root).label_files[0]}: {rule}; 2 more images cannot be used"


def test_train_ids_without_ignored_pixels_named_as_label_ids_are_refused(many):
    rng = np.random.default_rng(0)
    for index in range(MANY):
        road_and_houses = rng.choice(np.array([0, 2, 8, 10, 13], np.uint8), (HEIGHT, WIDTH))
        Image.fromarray(road_and_houses).save(pair_of(many, index)[1])
    message = refusal(opened(many, "val").check)
    assert re.match(
        re.escape(f"{pair_of(many, 0)[1]}: as label ids, ")
        + r"[56]\d % of the pixels of 16 files are "
        r"ignored, and no value is above 18, as in train ids; the names of files with train ids "
        r"must end in _gtFine_labelTrainIds.png$",
        message,
    )
    one = np.full((HEIGHT, WIDTH), 26, np.uint8)  # a car: these are label ids
    Image.fromarray(one).save(pair_of(many, 0)[1])
    opened(many, "val").check()


def test_label_ids_named_as_train_ids_are_refused(root):
    as_train_ids(root)
    file = opened(root).label_files[1]
    Image.fromarray(np.full((HEIGHT, WIDTH), 26, np.uint8)).save(file)
    rule = "train id 26: train ids lie in 0..18, or are 255 (ignored)"
    assert refusal(opened(root).check) == f"{file}: {rule}"


def test_images_of_several_sizes_are_resized_but_must_have_one_shape(many):
    file, _ = pair_of(many, 8)
    for factor in (2, 3):
        image, train_ids = random_pair(8, factor * HEIGHT, factor * WIDTH)
        cityscapes.write(str(many), "val", "bonn_000008_000000", image, train_ids)
        opened(many, "val").check()
        assert opened(many, "val")[8][0].shape == (HEIGHT, WIDTH, 3)
    image, train_ids = random_pair(8, HEIGHT, WIDTH + 1)
    cityscapes.write(str(many), "val", "bonn_000008_000000", image, train_ids)
    first = pair_of(many, 0)[0].name
    assert refusal(opened(many, "val").check) == (
        f"{file}: is 11 x 6 pixels, {first} 10 x 6; all images of a split are resized to one "
        "size, so crop them to one shape"
    )


def test_of_many_damaged_files_the_first_is_named_and_the_rest_counted(many):
    for index in (8, 20, 30):
        pair_of(many, index)[0].write_bytes(b"")
    message = refusal(opened(many, "val").check)
    assert message.startswith(f"{pair_of(many, 8)[0]}: cannot be read (")
    assert message.endswith("; 2 more images cannot be used")
