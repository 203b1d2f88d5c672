import numpy as np
import pytest
from PIL import Image

from qnas_jax.data.resize import covered


@pytest.mark.parametrize(
    ("size", "box"),
    [((12, 8), (2, 0, 10, 8)), ((8, 14), (0, 3, 8, 11)), ((4, 4), (0, 0, 4, 4))],
)
def test_the_middle_is_resized_and_both_ends_are_cut_off(size, box):
    """`size` and `box` are (width, height) and (left, top, right, bottom)."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels)
    for side in (4, 8, 16):
        expected = image.crop(box).resize((side, side), Image.Resampling.BILINEAR)
        found = np.asarray(covered(image, side, side)).astype(int)
        # The box of `resize` lets the filter see what lies next to it; `crop` does not.
        inner = slice(2, -2) if side > 4 else slice(1, -1)
        expected = np.asarray(expected)[inner, inner]
        np.testing.assert_allclose(found[inner, inner], expected, atol=0 if side == 8 else 1)
        assert found.shape == (side, side, 3)


def test_an_image_that_fits_is_left_as_it_is_and_proportions_may_differ():
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    np.testing.assert_array_equal(covered(Image.fromarray(pixels), 4, 6), pixels)
    np.testing.assert_array_equal(covered(Image.fromarray(pixels), 4, 2), pixels[:, 2:4])
    np.testing.assert_array_equal(covered(Image.fromarray(pixels), 2, 6), pixels[1:3])
