"""How images of any size become images of one size."""

from PIL import Image, ImageOps


def covered(image: Image.Image, height: int, width: int) -> Image.Image:
    """The largest central part of an image that has the proportions height : width, resized.

    Nothing is stretched: what is too long on one side is cut off equally at both ends.

    Args:
      image: Of any size.
      height: Of the result, pixels.
      width: Likewise.
    """
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
