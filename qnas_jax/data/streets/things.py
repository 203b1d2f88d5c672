"""Single things of the streets as images with one class each: the images of `objects`.

A thing goes to a tape first, so that its size is known before the camera is chosen that shows
it. Around it are a place, other things away from the middle, and shapes that hide a part of it.
"""

import zlib
from collections.abc import Callable

import numpy as np

from qnas_jax.data.streets import clutter, objects
from qnas_jax.data.streets.canvas import NEAR, Camera, Canvas
from qnas_jax.data.streets.objects import LABEL, Rng

LEAST = 0.02  # share of the image's pixels that at least show the thing
KEPT = 0.7  # share of the thing that at least stays visible
MIDDLE = 1 / 3  # of the image's height and width, where the background has no thing
NAMES = (
    *("pole", "traffic light", "traffic sign", "person", "rider", "car", "truck", "bus", "train"),
    *("motorcycle", "bicycle", "background"),
)
_SMALL = ("pole", "traffic light", "traffic sign", "person", "car", "motorcycle", "bicycle")
_ATTEMPTS = 16
_CLUTTERED = 8  # attempts with clutter; later ones show the thing alone, and larger


class _Tape(Canvas):
    """Keeps shapes until a canvas is given to draw them on."""

    def __init__(self, camera: Camera):
        self.camera = camera
        self._shapes: list[tuple[str, tuple]] = []

    def polygon(self, points, part):
        self._shapes.append(("polygon", (points, part)))

    def rectangle(self, x0, x1, y0, y1, z, part):
        self._shapes.append(("rectangle", (x0, x1, y0, y1, z, part)))

    def disk(self, x, y, z, radius_x, radius_y, part):
        self._shapes.append(("disk", (x, y, z, radius_x, radius_y, part)))

    def shadow(self, points, darkness):
        self._shapes.append(("shadow", (points, darkness)))

    def play(self, canvas: Canvas) -> None:
        """Draws the shapes."""
        for name, given in self._shapes:
            getattr(canvas, name)(*given)

    def bounds(self, label: int | None) -> tuple[float, float, float, float]:
        """Left, right, top and bottom of the shapes with a label, for a focal length of 1."""
        points = [p for name, given in self._shapes for p in _corners(name, given, label)]
        x, y, z = np.array(points).T
        z = np.maximum(z, NEAR)
        right, down = (x - self.camera.x) / z, (self.camera.y - y) / z
        return float(right.min()), float(right.max()), float(down.min()), float(down.max())


def _corners(name, given, label):
    """Points of a shape; none if it has another label."""
    if name == "shadow" or label not in (None, given[-1].label):
        return []
    if name == "polygon":
        return given[0]
    if name == "rectangle":
        x0, x1, y0, y1, z, _ = given
    else:
        x, y, z, radius_x, radius_y, _ = given
        x0, x1, y0, y1 = x - radius_x, x + radius_x, y - radius_y, y + radius_y
    return [(x0, y0, z), (x1, y1, z)]


def render(
    seed: int, split: str, index: int, height: int, width: int
) -> tuple[np.ndarray, int, np.ndarray]:
    """Renders one thing; equal arguments give equal images.

    Args:
      seed: Seed of the data set.
      split: Name such as "train" or "val"; each split has its own images.
      index: Index of the image in the split, from 0. The classes take turns.
      height: Image height in pixels.
      width: Image width in pixels.

    Returns:
      The image, uint8[height, width, 3]; its class, an index into `NAMES`; and the train ids of
      its pixels, uint8[height, width].
    """
    rng = np.random.default_rng((seed, zlib.crc32(f"objects {split}".encode()), index))
    kind = index % len(NAMES)
    name, z = NAMES[kind], rng.uniform(7, 22)
    # Only from the side do a bus and a train look different.
    turned = rng.uniform(0.5, 0.9) if name in ("bus", "train") else rng.uniform(0.0, 0.5)
    x = z * turned * (1 if rng.random() < 0.5 else -1)
    camera = Camera(1.0, 0.5, x, rng.uniform(0.9, 2.4), 0.0)
    tape = _Tape(camera)
    draw(tape, rng, name, 0.01, z)  # right of the middle: the arms of lamps reach to the left
    bounds = tape.bounds(LABEL[name] if name in ("traffic light", "traffic sign") else None)
    larger = {"pole": rng.uniform(1.2, 2.5), "bus": 1.2, "train": 1.4}.get(name, 1.0)
    share = rng.uniform(0.8, 1.1) * larger
    place = rng.uniform(-0.12, 0.12), rng.uniform(-0.12, 0.12)
    for attempt in range(_ATTEMPTS):
        later = max(attempt - _CLUTTERED + 1, 0)
        canvas = _framed(height, width, camera, bounds, share * 1.2**later, place)
        clutter.surroundings(canvas, rng, z)
        if not later:
            _others(canvas, rng, z)
        if _is_shown(canvas, rng, tape, name, z, bool(not later and rng.random() < 0.15)):
            break
    image, train_ids = canvas.shade(clutter.light(rng), rng)
    return image, kind, train_ids


def draw(canvas: Canvas, rng: Rng, name: str, x: float, z: float) -> None:
    """Draws a thing by the name of its class; for the background, something without one."""
    turned = bool(rng.random() < 0.5)
    drawn: dict[str, Callable[[], None]] = {
        "pole": lambda: objects.pole(canvas, rng, x, z, turned),
        "traffic light": lambda: objects.traffic_light(canvas, rng, x, z),
        "traffic sign": lambda: objects.traffic_sign(canvas, rng, x, z),
        "person": lambda: objects.person(canvas, rng, x, z),
        "rider": lambda: objects.two_wheeler(
            canvas, rng, x, z, "bicycle" if turned else "motorcycle", True
        ),
        "car": lambda: objects.car(canvas, rng, x, z, turned),
        "truck": lambda: objects.truck(canvas, rng, x, z, turned),
        "bus": lambda: objects.bus(canvas, rng, x, z, turned),
        "train": lambda: objects.train(canvas, rng, x, z),
        "motorcycle": lambda: objects.two_wheeler(canvas, rng, x, z, name, False),
        "bicycle": lambda: objects.two_wheeler(canvas, rng, x, z, name, False),
        "background": lambda: clutter.something(canvas, rng, x, z),
    }
    drawn[name]()


def _framed(height, width, camera, bounds, share, place) -> Canvas:
    """A canvas whose image the bounds fill to a share, moved from the middle by `place`."""
    left, right, top, bottom = bounds
    focal = share / max(bottom - top, (right - left) * height / width)
    horizon = 0.5 + place[0] - focal * (top + bottom) / 2
    canvas = Canvas(height, width, camera._replace(focal=focal, horizon=horizon))
    canvas.centre += place[1] * canvas.width - canvas.focal * (left + right) / 2
    return canvas


def _others(canvas, rng, z):
    """Draws other things, farther away and not in the middle."""
    for _ in range(rng.poisson(0.4)):
        far, column = z * rng.uniform(1.3, 2.5), rng.uniform(0.25, 0.6) * rng.choice((-1, 1))
        x = canvas.at((0.5 + column) * canvas.width, far)
        draw(canvas, rng, _SMALL[int(rng.integers(len(_SMALL)))], x, far)


def _is_shown(canvas, rng, tape, name, z, hide: bool) -> bool:
    """Draws the thing and what hides it; whether the image is one of its class."""
    first = len(canvas.parts)
    tape.play(canvas)
    label = LABEL.get(name)
    shown = 0.0 if label is None else canvas.share(first, label)
    if hide:
        clutter.cover(canvas, rng, z)
    if label is None:
        ids = canvas.train_ids()
        rows, columns = (
            slice(round(n * (1 - MIDDLE) / 2), round(n * (1 + MIDDLE) / 2)) for n in ids.shape
        )
        return not np.isin(ids[rows, columns], [LABEL[n] for n in NAMES[:-1]]).any()
    return canvas.share(first, label) >= max(LEAST, KEPT * shown)
