"""What is around a single thing, and what light and lens do to its image."""

import numpy as np

from qnas_jax.data.streets import objects
from qnas_jax.data.streets.canvas import (
    BARS,
    FACING,
    GROUND,
    PLAIN,
    WINDOWS,
    Canvas,
    Light,
    Part,
    grey,
)
from qnas_jax.data.streets.objects import LABEL, Rng, paint, shade
from qnas_jax.data.streets.scene import ASPHALT, FAR, GLASS, GRASS, PAVING, STONE

GROUNDS = (("road", ASPHALT), ("sidewalk", PAVING), ("terrain", GRASS))
SCREENS = ("house", "house", "wall", "fence", "hedge", "trunk", "kiosk")
MIXED = objects.COATS + STONE + objects.LEAVES


def surroundings(canvas: Canvas, rng: Rng, z: float) -> None:
    """Draws sky, ground, and houses, walls and plants at more than the distance `z`."""
    canvas.backdrop(0, 1, Part(LABEL["sky"], grey(0.5), place=60, grain=0.5, size=60))
    horizon = min(max(canvas.camera.horizon, 0.0), 1.0)
    name, colours = GROUNDS[int(rng.integers(3))]
    ground = Part(LABEL[name], paint(rng, colours, 0.04), GROUND, grain=0.2, size=3)
    canvas.backdrop(horizon, 1, ground)
    if rng.random() < 0.7:  # a strip along the road
        name, colours = GROUNDS[int(rng.integers(3))]
        x, wide = rng.normal(0, 4), rng.uniform(0.15, 6)
        strip = Part(LABEL[name], paint(rng, colours, 0.04), GROUND, grain=0.15, size=2)
        canvas.polygon([(x, 0, 2), (x + wide, 0, 2), (x + wide, 0, FAR), (x, 0, FAR)], strip)
    count = 1 + rng.poisson(2.5)
    for far in np.sort(z * rng.uniform(1.15, 5, count))[::-1].tolist():
        x = canvas.at(rng.uniform(-0.2, 1.2) * canvas.width, far)
        _screen(canvas, rng, SCREENS[int(rng.integers(len(SCREENS)))], x, far)


def _screen(canvas, rng, kind, x, z):
    """Draws something that closes the view."""
    if kind == "hedge":
        objects.bush(
            canvas, rng, x, z, rng.uniform(0.3, 3), rng.uniform(0.8, 2.5), rng.uniform(0.8, 2)
        )
        return
    if kind == "trunk":
        wide, top = rng.uniform(0.1, 0.3), rng.uniform(3, 8)
        wood = paint(rng, ((0.22, 0.17, 0.12), (0.35, 0.3, 0.25)))
        canvas.rectangle(
            x - wide, x + wide, 0, top, z, Part(LABEL["vegetation"], wood, place=z, grain=0.3)
        )
        return
    if kind == "kiosk":
        something(canvas, rng, x, z)
        return
    wide, top = {"house": (14, 16), "wall": (10, 3), "fence": (10, 2)}[kind]
    wide, top = wide * rng.uniform(0.5, 1.2), top * rng.uniform(0.4, 1.1)
    pattern, second = PLAIN, grey(0.0)
    if kind == "house" and rng.random() < 0.8:
        pattern, second = WINDOWS, paint(rng, GLASS)
    elif kind == "fence":
        pattern, second = BARS, shade(paint(rng, objects.LEAVES), 0.8)
    label = LABEL["building" if kind == "house" else kind]
    part = Part(label, paint(rng, STONE, 0.05), FACING, z, 0.12, 2, pattern, second)
    canvas.rectangle(x - wide / 2, x + wide / 2, 0, top, z, part)


def something(canvas: Canvas, rng: Rng, x: float, z: float) -> None:
    """Draws something that has no class of `objects`: a box, a board, a plant."""
    label, kind = LABEL["wall"], rng.integers(4)
    wide, deep, top = rng.uniform(0.4, 3), rng.uniform(0.3, 4), rng.uniform(0.5, 3)
    if kind == 0:
        reach = rng.uniform(0.5, 1.5)
        objects.bush(canvas, rng, x, z, reach, reach * rng.uniform(0.6, 1.2), reach)
    elif kind == 1:
        objects.tree(canvas, rng, x, z)
    else:
        objects.ground_shadow(canvas, x, z, wide, deep)
        objects.box(canvas, label, x, z, wide, deep, 0, top, paint(rng, MIXED))
        for _ in range(rng.integers(0, 4)):  # doors, boards, stripes
            centre, half = x + wide * rng.uniform(-0.35, 0.35), wide * rng.uniform(0.04, 0.3)
            low = top * rng.uniform(0.0, 0.7)
            part = Part(label, paint(rng, MIXED + GLASS), place=z)
            right, left = min(centre + half, x + wide / 2), max(centre - half, x - wide / 2)
            canvas.rectangle(left, right, low, min(low + top * rng.uniform(0.1, 0.5), top), z, part)


def cover(canvas: Canvas, rng: Rng, z: float) -> None:
    """Draws shapes between the camera and the distance `z`."""
    near = z * 0.7
    pixel = near / canvas.focal  # metres
    for _ in range(rng.integers(1, 3)):
        column, row = rng.uniform(0, 1) * canvas.width, rng.uniform(0, 1) * canvas.height
        x = canvas.at(column, near)
        y = canvas.camera.y - (row - canvas.horizon) * pixel
        wide, high = rng.uniform(0.04, 0.3, 2) * canvas.height * pixel
        kind = rng.integers(3)
        part = Part(LABEL["wall"], paint(rng, MIXED), place=near, grain=0.15)
        if kind == 0:  # a bar across the image
            canvas.rectangle(x - wide / 4, x + wide / 4, y - 99 * high, y + 99 * high, near, part)
        elif kind == 1:
            canvas.rectangle(x - wide, x + wide, y - high, y + high, near, part)
        else:
            objects.bush(canvas, rng, x, near, y, 1.3 * wide, 1.3 * high)


def light(rng: Rng) -> Light:
    """Draws the weather, with more contrast between images than in `scene`."""
    value = rng.uniform(0.4, 0.95)
    blue = rng.uniform(0, 1)
    top = (value * (1 - 0.5 * blue), value * (1 - 0.25 * blue), value)
    bottom = (value, value, min(1.0, value * 1.05))
    return Light(
        sky_top=top,
        sky_bottom=bottom,
        visibility=float(np.exp(rng.uniform(np.log(50), np.log(500)))),
        exposure=rng.uniform(0.6, 1.35),
        warmth=rng.uniform(-1.5, 1.5),
        noise=rng.uniform(0.005, 0.025),
    )
