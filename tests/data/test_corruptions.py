"""Corrupted images, against what each kind promises."""

import numpy as np
import pytest

from qnas_jax.data.corruptions import CORRUPTIONS, Corrupted
from qnas_jax.data.streets import Objects
from qnas_jax.run import config
from qnas_jax.stages import sources


def images():
    return Objects(0, "val", 48, 48, 3)


def test_the_config_names_the_kinds_that_there_are():
    assert config.CORRUPTIONS == tuple(CORRUPTIONS)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_an_image_is_the_same_at_every_call_and_its_label_stays(kind):
    data = Corrupted(images(), ((kind, 0.5),))
    assert len(data) == 3
    assert data.labels_per == "image"
    for index in range(3):
        image, label = data[index]
        again, _ = data[index]
        before, expected = images()[index]
        np.testing.assert_array_equal(image, again)
        assert image.dtype == np.uint8
        assert image.shape == before.shape
        assert label == expected
        assert (image != before).any()


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_more_strength_changes_more(kind):
    before = images()[0][0].astype(float)
    changes = [
        np.abs(Corrupted(images(), ((kind, strength),))[0][0] - before).mean()
        for strength in (0.1, 0.5, 1.0)
    ]
    assert changes == sorted(changes)


def test_dark_and_fog_are_what_they_say():
    before = images()[1][0].astype(float)
    dark = Corrupted(images(), (("dark", 1.0),))[1][0]
    assert dark.mean() == pytest.approx(before.mean() / 8, abs=2)
    fog = Corrupted(images(), (("fog", 1.0),))[1][0]
    np.testing.assert_allclose(fog, before + 0.8 * (200 - before), atol=0.51)


def test_several_come_one_after_another():
    both = Corrupted(images(), (("fog", 1.0), ("blur", 0.5)))[2][0]
    fog = Corrupted(images(), (("fog", 1.0),))[2][0]
    assert np.var(both) < np.var(fog)


def test_a_config_opens_them():
    data = config.Data(
        source="objects", height=48, width=48, train_images=2, val_images=3,
        corruptions=(("dark", 0.5),),
    )  # fmt: skip
    expected = Corrupted(images(), (("dark", 0.5),))[2][0]
    np.testing.assert_array_equal(sources.opened(data, "val")[2][0], expected)


def test_what_cannot_be_used_is_refused():
    for wrong, message in (
        ((("rain", 0.5),), "'rain' must be among"),
        ((("dark", 1.5),), "1.5"),
        ((("dark", 0.5), ("dark", 0.2)), "each name only once"),
    ):
        data = config.Data(train_images=1, val_images=1, corruptions=wrong)
        with pytest.raises(ValueError, match=message):
            data.check()
