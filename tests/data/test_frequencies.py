"""Resampled classes, against counts."""

import collections

import numpy as np
import pytest

from qnas_jax.data.batching import Cached
from qnas_jax.data.frequencies import Resampled
from qnas_jax.data.streets import Objects, Streets
from qnas_jax.errors import InputError
from qnas_jax.run import config
from qnas_jax.stages import sources


@pytest.fixture(scope="module")
def objects():
    return Cached(Objects(0, "val", 32, 32, 240), 64)


def counts(data):
    return collections.Counter(data.names[int(label)] for _, label in (data[i] for i in range(240)))


def test_without_weights_all_images_stay_as_they_are(objects):
    data = Resampled(objects, ())
    assert len(data) == 240
    for index in (0, 1, 119, 239):
        np.testing.assert_array_equal(data[index][0], objects[index][0])


def test_a_class_is_as_much_more_frequent_as_it_is_said(objects):
    before, name = counts(objects), "car"
    data = Resampled(objects, ((name, 4.0),))
    after = counts(data)
    share = 4 * before[name] / (240 + 3 * before[name])
    assert sum(after.values()) == 240
    assert abs(after[name] - 240 * share) <= 2
    assert [data[i][1] for i in range(240)] == [data[i][1] for i in range(240)]


def test_a_rare_class_goes(objects):
    assert counts(objects)["bus"] > 5
    assert counts(Resampled(objects, (("bus", 0.01),)))["bus"] <= 1
    assert (
        counts(Resampled(objects, (("bus", 0.0), ("car", 0.0)))).keys().isdisjoint({"bus", "car"})
    )


def test_some_image_must_be_left(objects):
    with pytest.raises(InputError, match="all 240 images show only classes that count 0"):
        Resampled(objects, tuple((name, 0.0) for name in objects.names))


def test_an_image_counts_by_the_pixels_of_a_class():
    streets = Cached(Streets(0, "val", 48, 96, 24), 64)

    def pixels(data):
        return np.mean([np.mean(data[i][1] == data.names.index("car")) for i in range(24)])

    weighted = Resampled(streets, (("car", 50.0),))
    shares = np.array([np.mean(streets[i][1] == 13) for i in range(24)])
    ignored = np.array([np.mean(streets[i][1] == 255) for i in range(24)])
    weights = 1 + 49 * shares / (1 - ignored)
    expected = (weights * shares).sum() / weights.sum()
    assert pixels(weighted) > pixels(streets)
    assert abs(pixels(weighted) - expected) < 0.3 * (expected - pixels(streets))


def test_the_last_image_is_the_last_and_there_are_no_more(objects):
    data = Resampled(objects, (("car", 4.0),))
    np.testing.assert_array_equal(data[-1][0], data[239][0])
    with pytest.raises(IndexError):
        data[240]


def test_a_config_opens_them():
    data = config.Data(source="objects", height=32, width=32, train_images=2, val_images=60,
                       frequencies=(("car", 9.0),))  # fmt: skip
    expected = Resampled(Objects(0, "val", 32, 32, 60), (("car", 9.0),))
    found = sources.opened(data, "val")
    assert [int(found[i][1]) for i in range(60)] == [int(expected[i][1]) for i in range(60)]


def test_what_cannot_be_used_is_refused(objects):
    with pytest.raises(InputError, match=r"there is no class 'cow'; there are .*car"):
        Resampled(objects, (("cow", 2.0),))
    for wrong, message in (
        ((("car", -1.0),), "'car' must have a number of at least 0"),
        ((("car", 0.5), ("car", 2.0)), "each name only once"),
    ):
        data = config.Data(train_images=1, val_images=1, frequencies=wrong)
        with pytest.raises(InputError, match=message):
            data.check()
