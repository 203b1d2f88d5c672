import concurrent.futures
import hashlib
import subprocess
import sys

import numpy as np
import pytest

from qnas_jax.data.batching import Dataset
from qnas_jax.data.labels import NAMES
from qnas_jax.data.streets import Objects, things

SIZE = (48, 48)
COUNT = 40 * len(things.NAMES)


@pytest.fixture(scope="module")
def rendered():
    """(image, class, train ids) of one split."""
    return [things.render(0, "val", index, *SIZE) for index in range(COUNT)]


def test_images_do_not_depend_on_order_or_thread(rendered):
    data = Objects(0, "val", *SIZE, 60)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(data.__getitem__, reversed(range(60))))[::-1]
    for (image, label), (expected, kind, _) in zip(found, rendered, strict=False):
        np.testing.assert_array_equal(image, expected)
        assert (label.shape, label.dtype, int(label)) == ((), np.int32, kind)


def test_images_do_not_depend_on_the_process(rendered):
    script = (
        "import hashlib; from qnas_jax.data.streets import things;"
        "print(hashlib.sha256(things.render(0, 'val', 5, 48, 48)[0].tobytes()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == hashlib.sha256(rendered[5][0].tobytes()).hexdigest()


def test_no_image_is_in_two_splits_or_of_two_seeds(rendered):
    others = [(0, "train"), (1, "val")]
    images = [image for image, _, _ in rendered]
    for seed, split in others:
        images += [things.render(seed, split, index, *SIZE)[0] for index in range(120)]
    assert len({image.tobytes() for image in images}) == len(images)


def test_all_classes_take_equal_turns(rendered):
    assert len(things.NAMES) == len(set(things.NAMES)) == 12
    counts = np.bincount([kind for _, kind, _ in rendered])
    assert counts.tolist() == [40] * 12
    assert sorted(kind for _, kind, _ in rendered[:12]) == list(range(12))
    data = Objects(0, "train", *SIZE, 30)
    assert isinstance(data, Dataset)
    assert (len(data), data.names, data.labels_per, data.content()) == (
        *(30, things.NAMES, "image"),
        "",
    )
    with pytest.raises(IndexError):
        data[30]


def middle(train_ids):
    height, width = (round(n * things.MIDDLE / 2) for n in train_ids.shape)
    rows, columns = (n // 2 for n in train_ids.shape)
    return train_ids[rows - height : rows + height, columns - width : columns + width]


def test_the_thing_is_seen_and_the_background_has_none_in_the_middle(rendered):
    all_things = {NAMES.index(name) for name in things.NAMES[:-1]}
    for image, kind, train_ids in rendered:
        assert image.shape == (*SIZE, 3)
        assert train_ids.shape == SIZE
        name = things.NAMES[kind]
        if name == "background":
            assert not all_things & set(middle(train_ids).ravel().tolist())
        else:  # every second pixel of what was drawn
            share = (train_ids == NAMES.index(name)).mean()
            assert share > 0.7 * things.LEAST, name


def test_a_thing_that_would_be_hidden_is_seen(monkeypatch):
    """What covers the whole image is left out in the end."""

    def cover(canvas, rng, z):
        canvas.backdrop(0, 1, things.clutter.Part(NAMES.index("wall"), (0.5, 0.5, 0.5)))

    monkeypatch.setattr(things.clutter, "cover", cover)
    for index in range(24):
        _, kind, train_ids = things.render(0, "train", index, *SIZE)
        name = things.NAMES[kind]
        if name != "background":
            assert (train_ids == NAMES.index(name)).mean() > 0.7 * things.LEAST, name


def test_things_vary_in_size_place_and_light(rendered):
    cars = [(image, ids == 13) for image, kind, ids in rendered if things.NAMES[kind] == "car"]
    shares = [mask.mean() for _, mask in cars]
    columns = [np.nonzero(mask)[1].mean() for _, mask in cars]
    means = [image.mean() for image, _ in cars]
    assert max(shares) > 3 * min(shares)
    assert max(columns) - min(columns) > 0.15 * SIZE[1]
    assert max(means) > 1.7 * min(means)


@pytest.mark.parametrize("size", [(32, 32), (33, 70), (64, 40), (96, 96)])
def test_images_of_any_size_show_the_thing(size):
    for index in range(24):
        image, kind, train_ids = things.render(2, "train", index, *size)
        assert image.shape == (*size, 3)
        assert image.dtype == train_ids.dtype == np.uint8
        name = things.NAMES[kind]
        if name != "background":
            assert (train_ids == NAMES.index(name)).mean() > 0.5 * things.LEAST, name
