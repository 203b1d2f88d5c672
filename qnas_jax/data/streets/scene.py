"""Composes a street scene: ground, roadside, objects and weather."""

import zlib

import numpy as np

from qnas_jax.data.streets import objects
from qnas_jax.data.streets.canvas import (
    ALONG,
    BARS,
    GROUND,
    PLAIN,
    WINDOWS,
    Camera,
    Canvas,
    Light,
    Part,
    grey,
)
from qnas_jax.data.streets.objects import LABEL, paint, shade
from qnas_jax.metrics import IGNORE

FAR = 160.0  # metres; end of the street
ASPHALT = (grey(0.3), (0.36, 0.35, 0.34), (0.42, 0.42, 0.44), (0.27, 0.28, 0.3))
PAVING = ((0.42, 0.41, 0.4), (0.5, 0.48, 0.45), grey(0.38), (0.45, 0.4, 0.37))
GRASS = ((0.25, 0.33, 0.12), (0.35, 0.36, 0.18), (0.38, 0.32, 0.2), (0.2, 0.28, 0.1))
STONE = ((0.62, 0.56, 0.46), (0.5, 0.3, 0.22), grey(0.55), (0.72, 0.7, 0.66),
         (0.4, 0.36, 0.33), (0.6, 0.5, 0.35))  # fmt: skip
GLASS = ((0.15, 0.18, 0.22), (0.35, 0.4, 0.45), (0.6, 0.6, 0.5))


def render(
    seed: int, split: str, index: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Renders one street scene; equal arguments give equal scenes.

    Args:
      seed: Seed of the data set.
      split: Name such as "train" or "val"; each split has its own scenes.
      index: Index of the scene in the split, from 0.
      height: Image height in pixels.
      width: Image width in pixels.

    Returns:
      The image, uint8[height, width, 3], and its train ids, uint8[height, width].
    """
    rng = np.random.default_rng((seed, zlib.crc32(split.encode()), index))
    camera = Camera(
        focal=rng.uniform(1.25, 2.0),
        horizon=rng.uniform(0.36, 0.5),
        x=rng.uniform(0.8, 2.6),
        y=rng.uniform(1.2, 1.7),
        bend=rng.normal(0, 0.0009),
    )
    canvas = Canvas(height, width, camera)
    canvas.backdrop(0, 1, Part(LABEL["sky"], grey(0.5), place=60, grain=0.5, size=60))
    lanes = 1 + (rng.random(2) < 0.25)
    edges = {-1: -3.2 * lanes[0], 1: 3.2 * lanes[1]}
    parking = {side: 2.2 if rng.random() < 0.45 else 0.0 for side in (-1, 1)}
    kerbs = {side: edges[side] + side * parking[side] for side in (-1, 1)}
    walks = {side: kerbs[side] + side * rng.uniform(2.0, 6.0) for side in (-1, 1)}
    rails = rng.random() < 0.15
    _ground(canvas, rng, edges, kerbs, walks, rails)
    for side in (-1, 1):
        _roadside(canvas, rng, side, walks[side] + side * rng.uniform(0, 3))
    things = _traffic(rng, edges, rails)
    things += _kerbside(rng, edges, kerbs, walks, parking)
    for _, draw in sorted(things, key=lambda thing: -thing[0]):
        draw(canvas)
    if rng.random() < 0.7:
        canvas.hood(rng.uniform(0.03, 0.09), Part(IGNORE, paint(rng, objects.COATS)))
    return canvas.shade(_weather(rng), rng)


def _strip(canvas, x0, x1, z0, z1, part):
    """Draws a strip of ground along the road."""
    steps = np.geomspace(max(z0, 1.7), z1, 14 if z1 - z0 > 20 else 3)
    points = [(x0, 0.0, z) for z in steps] + [(x1, 0.0, z) for z in steps[::-1]]
    canvas.polygon(points, part)


def _ground(canvas, rng, edges, kerbs, walks, rails):
    terrain = Part(LABEL["terrain"], paint(rng, GRASS, 0.03), GROUND, grain=0.3, size=3)
    canvas.backdrop(canvas.camera.horizon, 1, terrain)
    paving = Part(LABEL["sidewalk"], paint(rng, PAVING, 0.015), GROUND, grain=0.1, size=2)
    _strip(canvas, walks[-1], walks[1], 1.7, FAR, paving)
    asphalt = paint(rng, ASPHALT, 0.015)
    road = Part(LABEL["road"], asphalt, GROUND, grain=0.1, size=4)
    _strip(canvas, kerbs[-1], kerbs[1], 1.7, FAR, road)
    for side in (-1, 1):  # the kerb stone belongs to the sidewalk
        stone = Part(LABEL["sidewalk"], shade(paint(rng, PAVING, 0.015), 1.2), GROUND)
        _strip(canvas, kerbs[side], kerbs[side] + side * 0.15, 1.7, FAR, stone)
    paint_part = Part(LABEL["road"], shade(grey(0.75), rng.uniform(0.7, 1.1)), GROUND, grain=0.2)
    for x in np.arange(edges[-1], edges[1] + 0.1, 3.2):
        if rng.random() < 0.75:
            for z in np.arange(rng.uniform(2, 6), 70, 7.0):
                _strip(canvas, x - 0.07, x + 0.07, z, z + 3.5, paint_part)
    if rng.random() < 0.2:  # a zebra crossing
        z = rng.uniform(8, 30)
        for x in np.arange(kerbs[-1] + 0.4, kerbs[1] - 0.4, 1.0):
            _strip(canvas, x, x + 0.5, z, z + 3.5, paint_part)
    if rails:
        iron = Part(LABEL["road"], (0.25, 0.23, 0.22), GROUND, grain=0.05)
        for x in (edges[-1] + 0.9, edges[-1] + 2.35):
            _strip(canvas, x - 0.05, x + 0.05, 1.7, FAR, iron)
    for _ in range(rng.integers(0, 4)):  # shadows of objects outside the image
        z, x = rng.uniform(3, 40), rng.uniform(walks[-1], walks[1])
        wide, deep = rng.uniform(2, 8), rng.uniform(1, 10)
        corners = [(x, 0, z), (x + wide, 0, z + 1), (x + wide, 0, z + deep), (x, 0, z + deep)]
        canvas.shadow(corners, rng.uniform(0.2, 0.5))


def _roadside(canvas, rng, side, x):
    """Draws one side of the street from far to near: houses, walls, fences, hedges, trees."""
    bounds = [2.0]
    while bounds[-1] < FAR:
        bounds.append(bounds[-1] + rng.uniform(7, 28))
    built_up = rng.uniform(0.2, 0.75)
    lit = (rng.uniform(0.55, 1.0), rng.uniform(0.75, 1.05))
    for near, far in zip(bounds[-2::-1], bounds[:0:-1], strict=True):
        place = x + side * rng.uniform(0, 2.5)
        if rng.random() < built_up:
            _house(canvas, rng, side, place, near, far, lit)
            continue
        kinds = ["wall", "fence", "hedge", "trees", "open"]
        kind = rng.choice(kinds, p=[0.27, 0.27, 0.16, 0.16, 0.14])
        if kind == "wall":
            height, colour = rng.uniform(1.2, 3.0), paint(rng, STONE, 0.03)
            _screen(
                canvas,
                place,
                near,
                far,
                height,
                Part(LABEL["wall"], shade(colour, lit[0]), ALONG, place, 0.12, 2),
            )
        elif kind == "fence":
            part = Part(LABEL["fence"], shade(paint(rng, objects.METALS + STONE), lit[0]), ALONG,
                        place, 0.08, 1, BARS, shade(paint(rng, objects.LEAVES), 0.8))  # fmt: skip
            _screen(canvas, place, near, far, rng.uniform(1.0, 2.2), part)
        elif kind != "open":
            high = 1.0 if kind == "hedge" else 3.0
            for z in np.arange(far, near, -3.0 if kind == "hedge" else -5.0):
                reach = rng.uniform(0.8, 1.3) * high
                objects.bush(canvas, rng, place + side * reach, z, reach * 0.8, reach, reach)


def _screen(canvas, x, near, far, height, part):
    canvas.polygon([(x, 0, near), (x, height, near), (x, height, far), (x, 0, far)], part)


def _house(canvas, rng, side, x, near, far, lit):
    label, colour, glass = LABEL["building"], paint(rng, STONE, 0.03), paint(rng, GLASS)
    height = rng.uniform(5, 22)
    pattern = WINDOWS if rng.random() < 0.85 else PLAIN
    front = Part(label, shade(colour, lit[1]), place=near, grain=0.08, size=4,
                 pattern=pattern, second=glass)  # fmt: skip
    outer = x + side * 12
    canvas.polygon(
        [(x, 0, near), (outer, 0, near), (outer, height, near), (x, height, near)], front
    )
    wall = front._replace(colour=shade(colour, lit[0]), lay=ALONG, place=x)
    _screen(canvas, x, near, far, height, wall)
    if rng.random() < 0.4:  # a shop: the ground floor looks different
        shop = Part(label, shade(paint(rng, GLASS + STONE), lit[0]), ALONG, x, 0.3, 2)
        _screen(canvas, x, near, far, 3.0, shop)


def _traffic(rng, edges, rails):
    """Vehicles and riders on the road, as (depth, draw function)."""
    things = []

    def add(z, function, *args):
        things.append((z, lambda canvas: function(canvas, rng, *args)))

    for side in (-1, 1):
        lanes = round(abs(edges[side]) / 3.2)
        for lane in range(lanes):
            x = side * (1.6 + 3.2 * lane)
            if rails and side == -1 and lane == lanes - 1:
                if rng.random() < 0.8:
                    z = rng.uniform(9, 45)
                    add(z, objects.train, x, z)
                continue
            z = rng.uniform(6, 32)
            while z < 90:
                kind = rng.choice(
                    ["car", "truck", "bus", "cycle", "none"], p=[0.36, 0.1, 0.09, 0.28, 0.17]
                )
                if kind == "car":
                    add(z, objects.car, x + rng.normal(0, 0.2), z, side < 0)
                elif kind == "truck":
                    add(z, objects.truck, x, z, side < 0)
                elif kind == "bus":
                    add(z, objects.bus, x, z, side < 0)
                elif kind == "cycle":
                    name = "bicycle" if rng.random() < 0.55 else "motorcycle"
                    add(z, objects.two_wheeler, x + rng.uniform(-1, 1), z, name, True)
                z += rng.uniform(9, 30) + (8 if kind in ("truck", "bus") else 0)
    return things


def _kerbside(rng, edges, kerbs, walks, parking):
    """Parked vehicles, people, poles and trees, as (depth, draw function)."""
    things = []

    def add(z, function, *args):
        things.append((z, lambda canvas: function(canvas, rng, *args)))

    for side in (-1, 1):
        if parking[side]:
            x = edges[side] + side * 1.1
            for z in np.arange(rng.uniform(4, 9), 80, 5.6):
                if rng.random() < 0.55:
                    add(z, objects.car, x, z, rng.random() < 0.5)
                elif rng.random() < 0.15:
                    add(z, objects.truck, x, z, False)
        inner, outer = sorted((kerbs[side] + side * 0.4, walks[side] - side * 0.3))
        for _ in range(rng.poisson(6.0)):
            z = 4.5 + rng.exponential(16)
            add(z, objects.person, rng.uniform(inner, outer), z)
        if rng.random() < 0.15:  # a pedestrian crosses the road
            z = rng.uniform(8, 35)
            add(z, objects.person, rng.uniform(0, 1) * kerbs[side], z)
        for _ in range(rng.poisson(2.0)):  # parked
            z, name = 4 + rng.exponential(10), "bicycle" if rng.random() < 0.6 else "motorcycle"
            add(z, objects.two_wheeler, rng.uniform(inner, outer), z, name, False)
        kerb = kerbs[side] + side * 0.5
        for function, rate, reach in (
            (objects.traffic_sign, 2.2, 60),
            (objects.traffic_light, 0.9, 45),
            (objects.tree, 2.0, 90),
        ):
            for _ in range(rng.poisson(rate)):
                z = rng.uniform(7, reach)
                add(z, function, kerb, z)
        lamp = bool(rng.random() < 0.5)
        for z in np.arange(rng.uniform(8, 25), 100, rng.uniform(15, 35)):
            add(z, objects.pole, kerb, z, lamp)
    return things


def _weather(rng):
    if rng.random() < 0.5:  # clear
        top, bottom = (0.35, 0.55, 0.85), (0.75, 0.85, 0.95)
    else:
        grey = rng.uniform(0.55, 0.95)
        top, bottom = (grey * 0.92, grey * 0.95, grey), (grey, grey, grey)
    return Light(
        sky_top=top,
        sky_bottom=bottom,
        visibility=float(np.exp(rng.uniform(np.log(90), np.log(900)))),
        exposure=rng.uniform(0.65, 1.3),
        warmth=rng.uniform(-1, 1),
        noise=rng.uniform(0.01, 0.04),
    )
