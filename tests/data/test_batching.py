import collections
import concurrent.futures
import threading
import time

import numpy as np
import pytest

from qnas_jax.data import batching
from qnas_jax.data.batching import Augmentation

HEIGHT, WIDTH = 60, 100


class Ramps:
    """Images whose red is the column and whose green is the row, as the labels are."""

    def __init__(self, count, label):
        self.count, self.label = count, label

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.uint8)
        image = np.stack([columns, rows, np.full_like(rows, (200 + index) % 256)], axis=-1)
        return image, {"columns": columns, "rows": rows}[self.label]


class Whole:
    """A sequence of pairs as a data set."""

    names = ("a", "b")

    def __init__(self, pairs, labels_per="pixel"):
        self.pairs, self.labels_per = pairs, labels_per

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        return self.pairs[index]

    def content(self):
        return "hash"

    def check(self):
        pass


def varied(how, seeds, label="columns"):
    pair = Ramps(1, label)[0]
    for seed in seeds:
        yield batching.augment(*pair, how, np.random.default_rng(seed))


@pytest.mark.parametrize(("batch", "count"), [(4, 10), (7, 3), (5, 5), (1, 4)])
def test_every_epoch_shows_every_image_once_in_another_order(batch, count):
    steps = 8 * count
    shown = [batching.sample_indices(3, step, batch, count) for step in range(steps)]
    assert {len(indices) for indices in shown} == {batch}
    epochs = np.concatenate(shown).reshape(-1, count)
    np.testing.assert_array_equal(
        np.sort(epochs, axis=1), np.tile(np.arange(count), (8 * batch, 1))
    )
    assert len(np.unique(epochs, axis=0)) > 1
    other = [batching.sample_indices(4, step, batch, count) for step in range(steps)]
    assert not np.array_equal(shown, other)


def test_a_training_batch_depends_on_the_seed_and_the_step_alone():
    how = Augmentation((32, 48), (0.5, 2.0))

    def make(seed, step):
        return batching.training_batch(Ramps(5, "columns"), seed, step, 3, how)

    forward = [make(1, step) for step in range(4)]
    backward = [make(1, step) for step in reversed(range(4))][::-1]
    for a, b in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)
    different = [*forward, make(2, 0)]
    assert len({batch.images.tobytes() for batch in different}) == 5
    assert different[0].images.shape == (3, 32, 48, 3)
    assert different[0].labels.shape == (3, 32, 48)
    assert different[0].images.dtype == different[0].labels.dtype == np.uint8


def test_the_same_image_is_augmented_anew_at_each_place_of_a_batch():
    how = Augmentation((32, 48), (0.5, 2.0))
    batch = batching.training_batch(Ramps(1, "columns"), 0, 0, 6, how)
    assert len({image.tobytes() for image in batch.images}) == 6


@pytest.mark.parametrize(("label", "channel"), [("columns", 0), ("rows", 1)])
@pytest.mark.parametrize("crop", [(32, 48), (60, 100), (90, 130)])
@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 2.0), (1.5, 3.0)])
def test_an_augmented_image_stays_aligned_with_its_labels(label, channel, crop, scale):
    for image, ids in varied(Augmentation(crop, scale), range(20), label):
        assert image.shape == (*crop, 3)
        assert ids.shape == crop
        inside = ids != 255
        assert (image[~inside] == 128).all(), "what reaches beyond the image is grey"
        assert (image[inside][:, 2] == 200).all(), "what lies inside is not"
        off = image[inside][:, channel].astype(float) - ids[inside]
        assert abs(off).max() <= 1
        assert abs(off.mean()) < 0.1


@pytest.mark.parametrize("scale", [0.5, 1.7])
def test_labels_are_never_mixed(scale):
    label = np.random.default_rng(0).choice(np.array([3, 17, 255], np.uint8), (HEIGHT, WIDTH))
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    how = Augmentation((40, 60), (scale, scale))
    for seed in range(5):
        _, ids = batching.augment(image, label, how, np.random.default_rng(seed))
        assert set(np.unique(ids).tolist()) == {3, 17, 255}


def test_without_a_scale_an_image_is_as_it_is_or_mirrored():
    original, label = Ramps(1, "columns")[0]
    mirrored = 0
    for image, ids in varied(Augmentation((HEIGHT, WIDTH), (1.0, 1.0)), range(100)):
        flip = slice(None, None, -1 if ids[0, 0] else 1)
        np.testing.assert_array_equal(image, original[:, flip])
        np.testing.assert_array_equal(ids, label[:, flip])
        mirrored += ids[0, 0] != 0
    assert 30 < mirrored < 70


def test_scales_and_places_fill_their_ranges():
    how = Augmentation((20, 30), (0.8, 2.5))
    # The slope of the columns' numbers is one over the scale, negative where mirrored.
    rows = [ids[0].astype(float) for _, ids in varied(how, range(200))]
    scales = [29 / abs(row[-1] - row[0]) for row in rows]
    assert 0.75 < min(scales) < 0.9
    assert 2.1 < max(scales) < 2.8
    assert min(row.min() for row in rows) < 3
    assert max(row.max() for row in rows) > WIDTH - 4


def test_an_image_smaller_than_the_crop_may_lie_anywhere_in_it():
    how = Augmentation((90, 130), (1.0, 1.0))
    places = set()
    for image, ids in varied(how, range(60)):
        rows, columns = np.nonzero(ids != 255)
        assert len(rows) == HEIGHT * WIDTH
        places.add((int(rows.min()), int(columns.min())))
        assert image.shape == (90, 130, 3)
    tops, lefts = zip(*places, strict=True)
    assert min(tops) < 5 and max(tops) > 25
    assert min(lefts) < 5 and max(lefts) > 25


def test_images_are_stacked_as_they_are_in_the_order_asked_for():
    data = Ramps(4, "rows")
    batch = batching.stacked(data, [2, 0])
    assert batch.images[:, 0, 0, 2].tolist() == [202, 200]
    np.testing.assert_array_equal(batch.images[0], data[2][0])
    np.testing.assert_array_equal(batch.labels[1], data[0][1])


@pytest.mark.parametrize("threads", [1, 4])
def test_what_is_made_in_advance_comes_in_order(threads):
    def make(number):
        time.sleep(0.002 * (number % 5 == 0))  # some take longer than those after them
        return number**2

    assert list(batching.prefetch(make, 3, 40, threads)) == [n**2 for n in range(3, 40)]
    assert list(batching.prefetch(make, 5, 5, threads)) == []


def test_the_next_is_made_while_the_first_is_used():
    begun = [threading.Event() for _ in range(4)]
    items = batching.prefetch(lambda number: begun[number].set(), 0, 4, threads=2)
    next(items)
    assert all(event.wait(timeout=30) for event in begun)
    items.close()


def test_images_of_twice_the_size_are_interpolated_and_labels_repeated():
    data = Ramps(2, "columns")
    twice = batching.Resized(Whole(data), 2 * HEIGHT, 2 * WIDTH)
    assert isinstance(twice, batching.Dataset)
    assert (twice.names, twice.labels_per, twice.content()) == (("a", "b"), "pixel", "hash")
    assert len(twice) == 2
    image, label = twice[1]
    np.testing.assert_array_equal(label, np.kron(data[1][1], np.ones((2, 2), np.uint8)))
    # Each pixel is three quarters of the one that it lies in and a quarter of the next; at the
    # edges there is no next one.
    for axis, channel in ((1, 0), (0, 1)):
        size = image.shape[axis]
        ramp = np.clip((np.arange(size) + 0.5) / 2 - 0.5, 0, size // 2 - 1)
        found = np.moveaxis(image[..., channel], axis, 0)
        assert np.abs(found - ramp[:, None]).max() <= 0.5
    assert (image[..., 2] == 201).all()


def test_labels_of_another_size_are_never_mixed():
    class Ignored(Ramps):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image, np.where(label % 3, batching.IGNORE, label).astype(np.uint8)

    data = Whole(Ignored(1, "rows"))
    for height, width in ((64, WIDTH - 31), (16, 190)):  # no pixel's middle is an edge
        image, label = batching.Resized(data, height, width)[0]
        assert image.shape == (height, width, 3)
        assert label.shape == (height, width)
        assert set(np.unique(label)) <= set(np.unique(data[0][1]))
        middles = ((np.arange(height) + 0.5) * HEIGHT / height).astype(int)
        np.testing.assert_array_equal(label[:, 0], data[0][1][middles, 0])


def test_an_error_of_a_maker_reaches_the_reader_at_its_place():
    def make(number):
        if number == 5:
            raise OSError("image 5 is damaged")
        return number

    seen = []
    with pytest.raises(OSError, match="image 5 is damaged"):
        for number in batching.prefetch(make, 0, 20, threads=2):
            seen.append(number)
    assert seen == [0, 1, 2, 3, 4]


def test_what_nobody_will_read_is_not_made(monkeypatch):
    pool, made, leaving = concurrent.futures.ThreadPoolExecutor, [], threading.Event()
    leave = pool.__exit__
    monkeypatch.setattr(pool, "__exit__", lambda *args: leaving.set() or leave(*args))

    def make(number):
        made.append(number)
        assert number == 0 or leaving.wait(timeout=30)

    items = batching.prefetch(make, 0, 1000, threads=1)
    next(items)
    items.close()
    assert made in ([0], [0, 1]), "the one that was begun is finished; no other is"


def of_classes(count, most=1000):
    """Images with one label each, up to 999."""
    ramps = Ramps(count, "columns")
    return [(ramps[i][0], np.array(most - 1 - i, np.int32)) for i in range(count)]


def test_a_label_of_the_whole_image_passes_through_and_images_are_augmented_alike():
    how = Augmentation((32, 48), (0.5, 2.0))
    batch = batching.training_batch(of_classes(5), 3, 2, 4, how)
    same = batching.training_batch(Ramps(5, "columns"), 3, 2, 4, how)
    np.testing.assert_array_equal(batch.images, same.images)
    shown = 200 + 999 - batch.labels  # the blue of the image that has this label
    inside = [image[..., 2][ids != 255] for image, ids in zip(*same, strict=True)]
    assert [int(blue[0]) for blue in inside] == shown.tolist()
    assert batch.labels.dtype == np.int32
    assert batch.labels.shape == (4,)


def test_images_with_one_label_are_stacked_cropped_and_resized():
    pairs = of_classes(3)
    assert batching.stacked(pairs, [2, 0]).labels.tolist() == [997, 999]
    assert batching.stacked(pairs, [2, 0]).labels.dtype == np.int32
    crops = batching.central_crops(pairs, [1], (20, 30))
    np.testing.assert_array_equal(crops[0], pairs[1][0][20:40, 35:65])
    image, label = batching.Resized(Whole(pairs, "image"), 30, 50)[2]
    assert image.shape == (30, 50, 3)
    assert (label.shape, label.dtype, int(label)) == ((), np.int32, 997)


class Counted(Whole):
    """Counts how often each image is read."""

    def __init__(self, count):
        super().__init__(Ramps(count, "columns"))
        self.reads = collections.Counter()

    def __getitem__(self, index):
        self.reads[index] += 1
        return super().__getitem__(index)


ONE = 4 * HEIGHT * WIDTH  # bytes of an image with its labels


def test_cached_images_are_those_of_the_data_set_and_read_once():
    plain, counted = Ramps(40, "rows"), Counted(40)
    counted.pairs = plain
    cached = batching.Cached(counted, 40 * ONE // 1_000_000 + 1)
    assert isinstance(cached, batching.Dataset)
    assert (cached.names, cached.labels_per, cached.content(), len(cached)) == (
        *(("a", "b"), "pixel", "hash"),
        40,
    )
    how = Augmentation((32, 48), (0.5, 2.0))
    for step in range(12):  # more than two epochs
        found = batching.training_batch(cached, 1, step, 8, how)
        expected = batching.training_batch(plain, 1, step, 8, how)
        np.testing.assert_array_equal(found.images, expected.images)
        np.testing.assert_array_equal(found.labels, expected.labels)
    assert set(counted.reads.values()) == {1} and len(counted.reads) == 40
    with pytest.raises(ValueError, match="read-only"):
        cached[0][0][0, 0, 0] = 1


@pytest.mark.parametrize("megabytes", [0, 1])
def test_no_more_is_kept_than_the_bound_allows(megabytes):
    fits = megabytes * 1_000_000 // ONE
    assert fits < 60
    counted = Counted(60)
    cached = batching.Cached(counted, megabytes)
    for _ in range(3):
        for index in range(60):
            np.testing.assert_array_equal(cached[index][0], counted.pairs[index][0])
    assert [counted.reads[i] for i in range(60)] == [1] * fits + [3] * (60 - fits)


def test_threads_share_what_is_cached_and_its_bound():
    counted = Counted(60)
    cached = batching.Cached(counted, 1)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            found = list(pool.map(cached.__getitem__, range(60)))
    for index, (image, _) in enumerate(found):
        np.testing.assert_array_equal(image, counted.pairs[index][0])
    counted.reads.clear()
    for index in range(60):
        cached[index]
    assert 60 - counted.reads.total() == 1_000_000 // ONE, "so many are kept, however they came"
