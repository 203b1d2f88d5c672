"""The renderer of street scenes: shapes in metres become shaded pixels.

Shapes are drawn from far to near into a buffer of *part* indices. A part gives the class, colour,
texture and depth of its pixels. Shading runs once over the whole image.

World coordinates are in metres: `x` to the right of the road's centre line, `y` above the ground,
`z` in front of the camera. The road bends: its centre line is shifted by `bend * z**2`.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

OVERSAMPLING = 2  # images are drawn at twice their size, for antialiasing
Colour = tuple[float, float, float]  # red, green, blue in 0..1

NEAR = 1.6  # metres; the near clipping distance

# Orientation of a part's texture: on the ground, on a plane along the road, facing the camera.
GROUND, ALONG, FACING = 0, 1, 2
# Repeating pattern of the texture.
PLAIN, WINDOWS, BARS = 0, 1, 2


def grey(value: float) -> Colour:
    """Returns a grey."""
    return value, value, value


class Camera(NamedTuple):
    """The camera's position and optics, and the bend of the road.

    Attributes:
      focal: Focal length in image heights.
      horizon: Position of the horizon, as a fraction of the image height from the top.
      x: Metres right of the centre line.
      y: Metres above the ground.
      bend: Curvature of the road, 1/metres.
    """

    focal: float
    horizon: float
    x: float
    y: float
    bend: float


class Part(NamedTuple):
    """Class and appearance of the pixels of a shape."""

    label: int  # train id
    colour: Colour
    lay: int = FACING
    place: float = 20.0  # z of a FACING plane, x of an ALONG plane; metres
    grain: float = 0.1  # strength of the texture
    size: float = 1.0  # metres per texture patch
    pattern: int = PLAIN
    second: Colour = (0.0, 0.0, 0.0)  # colour of windows or gaps


@dataclasses.dataclass(slots=True)
class Light:
    """Sky, haze and exposure of an image."""

    sky_top: Colour
    sky_bottom: Colour
    visibility: float  # metres; at this depth the haze has a weight of 1 - 1/e
    exposure: float
    warmth: float  # -1 (blue) to 1 (yellow)
    noise: float


class Canvas:
    """Collects shapes; `shade` turns them into an image and its labels."""

    def __init__(self, height: int, width: int, camera: Camera):
        self.height, self.width = height * OVERSAMPLING, width * OVERSAMPLING
        self.camera = camera
        self.focal = camera.focal * self.height
        self.centre = self.width / 2
        self.horizon = camera.horizon * self.height
        self.parts: list[Part] = []
        self._numbers = Image.new("I", (self.width, self.height))
        self._shadow = Image.new("L", (self.width, self.height), 255)
        self._draw = ImageDraw.Draw(self._numbers)
        self._draw_shadow = ImageDraw.Draw(self._shadow)

    def project(self, x: int | float, y: int | float, z: int | float) -> tuple[float, float]:
        """Returns the pixel (column, row) of a point in world coordinates."""
        z = max(z, NEAR)
        camera = self.camera
        right = x + camera.bend * z * z - camera.x
        return (
            self.centre + self.focal * right / z,
            self.horizon + self.focal * (camera.y - y) / z,
        )

    def polygon(self, points, part: Part) -> None:
        """Draws a polygon through world points (x, y, z)."""
        pixels = [self.project(*point) for point in points]
        self._draw.polygon(pixels, fill=self._number(part))

    def rectangle(self, x0, x1, y0, y1, z, part: Part) -> None:
        """Draws a rectangle that faces the camera, at least one image pixel wide and high."""
        left, top = self.project(x0, y1, z)
        right, bottom = self.project(x1, y0, z)
        right = max(right, left + OVERSAMPLING - 1)
        bottom = max(bottom, top + OVERSAMPLING - 1)
        self._draw.rectangle([left, top, right, bottom], fill=self._number(part))

    def disk(self, x, y, z, radius_x, radius_y, part: Part) -> None:
        """Draws an ellipse that faces the camera."""
        left, top = self.project(x - radius_x, y + radius_y, z)
        right, bottom = self.project(x + radius_x, y - radius_y, z)
        self._draw.ellipse(
            [left, top, max(right, left + 1), max(bottom, top + 1)],
            fill=self._number(part),
        )

    def backdrop(self, top: int | float, bottom: int | float, part: Part) -> None:
        """Fills the rows between two heights, as fractions of the image height from the top."""
        box = [0, top * self.height, self.width, bottom * self.height]
        self._draw.rectangle(box, fill=self._number(part))

    def hood(self, share: float, part: Part) -> None:
        """Draws the hood of the camera's own car at the lower edge."""
        box = [-0.1 * self.width, (1 - share) * self.height]
        box += [1.1 * self.width, (1 + share) * self.height]
        self._draw.ellipse(box, fill=self._number(part))

    def shadow(self, points, darkness: float) -> None:
        """Darkens the ground inside a polygon."""
        pixels = [self.project(*point) for point in points]
        self._draw_shadow.polygon(pixels, fill=int(255 * (1 - darkness)))

    def at(self, column: float, z: float) -> float:
        """Returns the `x` of points at a distance that are seen in a column, without a bend."""
        return self.camera.x + (column - self.centre) * z / self.focal

    def train_ids(self) -> np.ndarray:
        """Returns the train ids of the pixels that are drawn, before they are made smaller."""
        return np.array([p.label for p in self.parts], np.uint8)[np.asarray(self._numbers)]

    def share(self, first: int, label: int) -> float:
        """Returns the share of the pixels that show parts with a label, from part `first` on."""
        chosen = [i >= first and p.label == label for i, p in enumerate(self.parts)]
        return float(np.array(chosen)[np.asarray(self._numbers)].mean())

    def _number(self, part: Part) -> int:
        self.parts.append(part)
        return len(self.parts) - 1

    def shade(self, light: Light, rng: np.random.Generator):
        """Returns the image, uint8[height, width, 3], and its train ids, uint8[height, width]."""
        numbers, labels = np.asarray(self._numbers), self.train_ids()
        lay = self._column("lay", numbers)
        u, v, depth = self._plane(lay, self._column("place", numbers))
        image = self._textured(numbers, u, v, depth)
        dark = np.asarray(self._shadow, np.float32) / 255
        image *= np.where(lay == GROUND, dark, 1.0)[..., None]

        haze = (1 - np.exp(-depth / light.visibility))[..., None]
        image += haze * (np.array(light.sky_bottom, np.float32) - image)
        sky = _sky(self.height, self.horizon, light)
        is_sky = (numbers == 0)[..., None]
        image = np.where(is_sky, sky * (1 + 0.25 * (image - 0.5)), image)

        # As `mean` adds them up, but faster than over axes of length 2.
        steps = range(OVERSAMPLING)
        parts = [image[i::OVERSAMPLING, j::OVERSAMPLING] for i in steps for j in steps]
        image = sum(parts[1:], parts[0]) / len(parts)
        image *= light.exposure * np.array(
            [1 + 0.08 * light.warmth, 1.0, 1 - 0.08 * light.warmth], np.float32
        )
        image += light.noise * rng.standard_normal(image.shape, np.float32)
        pixels = (255 * np.clip(image, 0, 1)).astype(np.uint8)
        return pixels, labels[::OVERSAMPLING, ::OVERSAMPLING].copy()

    def _column(self, field: str, numbers: np.ndarray) -> np.ndarray:
        values = np.array([getattr(p, field) for p in self.parts], np.float32)
        return values[numbers]

    def _plane(self, lay, place):
        """Texture coordinates and depth of every pixel, in metres."""
        x = np.arange(self.width, dtype=np.float32)[None] + 0.5 - self.centre
        y = np.arange(self.height, dtype=np.float32)[:, None] + 0.5 - self.horizon
        side = place - self.camera.x
        ground_depth = self.focal * self.camera.y / np.maximum(y, 0.5)
        # The depth of planes along the road ignores the bend.
        along_depth = np.abs(self.focal * side) / np.maximum(np.abs(x), 0.5)
        depth = np.choose(lay.astype(np.int8), [ground_depth, along_depth, place])
        depth = np.clip(depth, NEAR, 400.0)
        across = x * depth / self.focal - self.camera.bend * depth**2
        height = self.camera.y - y * depth / self.focal
        u = np.where(lay == ALONG, depth, across)
        v = np.where(lay == GROUND, depth, height)
        return u, v, depth

    def _textured(self, numbers, u, v, depth):
        size, grain = self._column("size", numbers), self._column("grain", numbers)
        colour = np.array([p.colour for p in self.parts], np.float32).take(numbers, axis=0)
        # Each part reads a different section of the noise.
        shift = (np.arange(len(self.parts)) * 37.0 % NOISE.shape[0])[numbers]
        coarse = _noise_at(u / size * 32 + shift, v / size * 32)
        fine = _noise_at(u / size * 128, v / size * 128 + shift)
        # Texture finer than a pixel averages out.
        visible = np.clip(self.focal / depth * size / 64, 0.1, 1.0)
        gain = 1 + grain * (coarse + visible * fine)
        self._patterned(colour, numbers, u, v)
        return colour * gain[..., None]

    def _patterned(self, colour, numbers, u, v):
        """Puts the second colour of parts where their pattern has it."""
        pattern = np.array([p.pattern for p in self.parts])
        second = np.array([p.second for p in self.parts], np.float32)
        for kind in (WINDOWS, BARS):
            places = np.nonzero((pattern == kind)[numbers]) if kind in pattern else ((),)
            if not len(places[0]):
                continue
            u_there, v_there = u[places], v[places]
            if kind == WINDOWS:
                wide, high = np.abs(u_there / 3.0 % 1 - 0.5), np.abs(v_there / 3.1 % 1 - 0.55)
                chosen = (wide < 0.28) & (high < 0.27)
            else:
                chosen = u_there * 3.0 % 1 > 0.35
            chosen = tuple(axis[chosen] for axis in places)
            colour[chosen] = second[numbers[chosen]]


def _sky(height, horizon, light):
    share = np.clip(np.arange(height, dtype=np.float32) / max(horizon, 1), 0, 1)
    top, bottom = (np.array(c, np.float32) for c in (light.sky_top, light.sky_bottom))
    return (top + share[:, None] * (bottom - top))[:, None]


def _noise_at(u, v):
    mask = NOISE.shape[0] - 1
    return NOISE[v.astype(np.int32) & mask, u.astype(np.int32) & mask]


def _make_noise(size: int) -> np.ndarray:
    """Periodic noise at several scales, with mean 0 and standard deviation 1."""
    rng = np.random.default_rng(7)
    total = np.zeros((size, size), np.float32)
    for cells, weight in ((16, 1.0), (32, 0.8), (64, 0.6), (256, 0.5)):
        grid = rng.standard_normal((cells, cells)).astype(np.float32)
        grid = np.pad(grid, 1, mode="wrap")
        patch = Image.fromarray(grid).resize(
            (size, size), Image.Resampling.BICUBIC, box=(1, 1, cells + 1, cells + 1)
        )
        total += weight * np.asarray(patch)
    return (total - total.mean()) / total.std()


NOISE = _make_noise(256)
