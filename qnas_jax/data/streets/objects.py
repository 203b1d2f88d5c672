"""The objects of a street. Each function draws one object.

`x` is the distance to the right of the road's centre line and `z` the distance from the camera.
All distances and sizes are in metres.
"""

from collections.abc import Sequence

import numpy as np

from qnas_jax.data.labels import NAMES
from qnas_jax.data.streets.canvas import ALONG, Canvas, Colour, Part, grey

LABEL = {name: i for i, name in enumerate(NAMES)}
Rng = np.random.Generator

DARK = (0.07, 0.07, 0.08)
CIRCLE = [(np.cos(a), np.sin(a)) for a in np.linspace(0, 2 * np.pi, 14)[:-1]]


def shade(colour: Sequence[float], factor: float) -> Colour:
    """Returns a colour scaled by a factor and clipped to [0, 1]."""
    red, green, blue = (min(max(float(c) * factor, 0.0), 1.0) for c in colour)
    return red, green, blue


def paint(rng: Rng, colours: Sequence[Colour], jitter: float = 0.06) -> Colour:
    """Returns one of the colours with random jitter."""
    colour = np.array(colours[int(rng.integers(len(colours)))])
    return shade((colour + rng.normal(0, jitter, 3)).tolist(), rng.uniform(0.8, 1.15))


# All kinds of vehicles share these colours, so that colour does not reveal the class. Pedestrians
# and riders share clothes for the same reason.
COATS = (grey(0.8), grey(0.1), grey(0.4), grey(0.6), (0.1, 0.15, 0.4),
         (0.5, 0.08, 0.08), (0.75, 0.7, 0.55), (0.1, 0.3, 0.2), (0.8, 0.65, 0.1))  # fmt: skip
CLOTHES = (grey(0.1), (0.15, 0.2, 0.4), (0.5, 0.1, 0.1), grey(0.6), (0.3, 0.25, 0.2),
           (0.7, 0.6, 0.2), (0.2, 0.35, 0.25), grey(0.85))  # fmt: skip
SKIN = ((0.85, 0.65, 0.5), (0.6, 0.42, 0.3), (0.35, 0.22, 0.15))
METALS = (grey(0.45), grey(0.3), grey(0.6), (0.35, 0.4, 0.35))
LEAVES = ((0.15, 0.3, 0.08), (0.25, 0.35, 0.1), (0.1, 0.22, 0.1), (0.4, 0.35, 0.12),
          (0.3, 0.27, 0.15))  # fmt: skip


def box(canvas: Canvas, label, x, z, width, length, y0, y1, colour, lit=(0.85, 1.0)):
    """Draws the visible faces of a box: one side, the near face, the top if below the camera."""
    left, right = x - width / 2, x + width / 2
    eye = canvas.camera.x - canvas.camera.bend * z * z
    far = z + length
    if left > eye or right < eye:
        side = left if left > eye else right
        part = Part(label, shade(colour, lit[0]), ALONG, side, 0.05)
        canvas.polygon([(side, y0, z), (side, y1, z), (side, y1, far), (side, y0, far)], part)
    if y1 < canvas.camera.y:
        top = Part(label, shade(colour, 1.2), place=z, grain=0.04)
        canvas.polygon([(left, y1, z), (right, y1, z), (right, y1, far), (left, y1, far)], top)
    canvas.rectangle(
        left, right, y0, y1, z, Part(label, shade(colour, lit[1]), place=z, grain=0.05)
    )


def wheels(canvas: Canvas, label, x, width, places, radius):
    """Draws the wheels on the visible side of a vehicle."""
    for z in places:
        eye = canvas.camera.x - canvas.camera.bend * z * z
        side = x - width / 2 if x > eye else x + width / 2
        rim = [(side, radius * (1 + s), z + radius * c) for c, s in CIRCLE]
        canvas.polygon(rim, Part(label, DARK, place=z, grain=0.2))
        hub = [(side, radius * (1 + 0.5 * s), z + 0.5 * radius * c) for c, s in CIRCLE]
        canvas.polygon(hub, Part(label, grey(0.35), place=z))


def lamps(canvas: Canvas, label, x, z, width, y, coming: bool):
    """Draws two lamps on the near face: headlights of an oncoming vehicle, else rear lights."""
    colour = (0.95, 0.95, 0.8) if coming else (0.6, 0.05, 0.05)
    for side in (-1, 1):
        centre = x + side * width * 0.38
        canvas.rectangle(centre - 0.14, centre + 0.14, y, y + 0.16, z, Part(label, colour, place=z))


def ground_shadow(canvas: Canvas, x, z, width, length):
    """Darkens the ground under a vehicle."""
    left, right = x - width * 0.55, x + width * 0.55
    near, far = z - 0.3, z + length + 0.3
    canvas.shadow([(left, 0, near), (right, 0, near), (right, 0, far), (left, 0, far)], 0.6)


def car(canvas: Canvas, rng: Rng, x, z, coming: bool):
    """Draws a car, seen from the front (`coming`) or from the rear."""
    label, colour = LABEL["car"], paint(rng, COATS)
    width, length, roof = rng.uniform(1.65, 1.95), rng.uniform(3.6, 4.8), rng.uniform(1.4, 1.75)
    ground_shadow(canvas, x, z, width, length)
    box(canvas, label, x, z, width, length, 0.22, 0.82, colour)
    glass = shade(paint(rng, ((0.15, 0.17, 0.2), (0.3, 0.33, 0.36))), 1.0)
    hood = rng.uniform(0.7, 1.1) if coming else rng.uniform(0.2, 0.6)
    box(canvas, label, x, z + hood, width * 0.86, length - hood - 0.7, 0.82, roof - 0.1, glass)
    box(
        canvas,
        label,
        x,
        z + hood + 0.1,
        width * 0.84,
        length - hood - 0.9,
        roof - 0.1,
        roof,
        colour,
    )
    wheels(canvas, label, x, width, (z + 0.75, z + length - 0.8), 0.31)
    canvas.rectangle(x - width * 0.42, x + width * 0.42, 0.1, 0.3, z, Part(label, DARK, place=z))
    lamps(canvas, label, x, z, width, 0.58, coming)
    canvas.rectangle(x - 0.25, x + 0.25, 0.4, 0.5, z, Part(label, grey(0.8), place=z))


def truck(canvas: Canvas, rng: Rng, x, z, coming: bool):
    """Draws a truck: a box on wheels, and a cab if it is `coming`."""
    label = LABEL["truck"]
    colour, cab = paint(rng, COATS), paint(rng, COATS)
    width, length, top = rng.uniform(2.2, 2.5), rng.uniform(5, 10), rng.uniform(2.6, 3.8)
    ground_shadow(canvas, x, z, width, length)
    front = 1.9 if coming else 0.0
    box(canvas, label, x, z + front, width, length - front, 0.9, top, colour)
    wheels(canvas, label, x, width, (z + 1.2, z + length - 2.6, z + length - 1.4), 0.48)
    if coming:
        height = min(2.7, top)
        box(canvas, label, x, z, width * 0.95, 1.8, 0.45, height, cab)
        pane = Part(label, (0.15, 0.18, 0.2), place=z)
        canvas.rectangle(x - width * 0.42, x + width * 0.42, height - 1.15, height - 0.4, z, pane)
    else:
        canvas.rectangle(
            x - width * 0.45, x + width * 0.45, 0.45, 0.9, z, Part(label, DARK, place=z)
        )
    lamps(canvas, label, x, z, width, 0.6, coming)


def bus(canvas: Canvas, rng: Rng, x, z, coming: bool):
    """Draws a bus."""
    length = rng.uniform(9, 13)
    _coach(canvas, rng, "bus", x, z, 2.55, length, rng.uniform(2.9, 3.3))
    wheels(canvas, LABEL["bus"], x, 2.55, (z + 2.2, z + length - 2.8), 0.5)
    lamps(canvas, LABEL["bus"], x, z, 2.55, 0.7, coming)


def train(canvas: Canvas, rng: Rng, x, z):
    """Draws a tram of several coaches, without visible wheels."""
    for coach in range(int(rng.integers(2, 4)), -1, -1):
        _coach(canvas, rng, "train", x, z + 9.5 * coach, 2.5, 9.2, 3.5)
    lamps(canvas, LABEL["train"], x, z, 2.5, 0.9, coming=True)


def _coach(canvas, rng, name, x, z, width, length, top):
    label, colour = LABEL[name], paint(rng, COATS)
    ground_shadow(canvas, x, z, width, length)
    box(canvas, label, x, z, width, length, 0.35, top, colour)
    sill, glass = top * 0.45, (0.13, 0.16, 0.19)
    eye = canvas.camera.x - canvas.camera.bend * z * z
    side = x - width / 2 if x - width / 2 > eye else x + width / 2
    pane = Part(label, glass, ALONG, side, 0.2, 2.0)
    edge = length / 12
    for start in np.arange(z + 0.4, z + length - edge, length / 6):
        end = start + length / 6 - 0.35
        corners = [
            (side, sill, start),
            (side, top - 0.45, start),
            (side, top - 0.45, end),
            (side, sill, end),
        ]
        if (side - eye) * (x - eye) > 0 and abs(x - eye) > width / 2:
            canvas.polygon(corners, pane)
    canvas.rectangle(
        x - width * 0.43, x + width * 0.43, sill, top - 0.4, z, Part(label, glass, place=z)
    )


def person(canvas: Canvas, rng: Rng, x, z, name: str = "person", seat: float = 0.0):
    """Draws a person who stands or walks, or who sits at height `seat` if that is not 0."""
    label = LABEL[name]
    scale = rng.normal(1.0, 0.06) * (0.65 if name == "person" and rng.random() < 0.12 else 1.0)
    legs, body, skin = paint(rng, CLOTHES), paint(rng, CLOTHES), paint(rng, SKIN, 0.02)
    hip = seat if seat else 0.85 * scale
    stride = rng.uniform(-0.3, 0.3) * scale
    foot = max(hip - 0.6, 0.25) if seat else 0.0
    for side in (-1, 1):
        top, bottom = x + side * 0.09 * scale, x + side * stride
        part = Part(label, shade(legs, 1 + 0.1 * side), place=z, grain=0.15, size=0.6)
        thick = 0.085 * scale
        canvas.polygon([(top - thick, hip + 0.1, z), (top + thick, hip + 0.1, z),
                        (bottom + thick, foot, z), (bottom - thick, foot, z)], part)  # fmt: skip
    shoulder = hip + 0.6 * scale
    wide = 0.22 * scale
    torso = Part(label, body, place=z, grain=0.15, size=0.6)
    canvas.polygon([(x - wide * 0.75, hip, z), (x + wide * 0.75, hip, z),
                    (x + wide, shoulder, z), (x - wide, shoulder, z)], torso)  # fmt: skip
    swing = rng.uniform(-0.15, 0.15)
    for side in (-1, 1):
        arm = x + side * wide
        canvas.polygon([(arm - 0.05, shoulder, z), (arm + 0.05, shoulder, z),
                        (arm + side * swing + 0.05, hip - 0.02, z),
                        (arm + side * swing - 0.05, hip - 0.02, z)],
                       Part(label, shade(body, 0.85), place=z))  # fmt: skip
    canvas.disk(
        x, shoulder + 0.17 * scale, z, 0.1 * scale, 0.14 * scale, Part(label, skin, place=z)
    )
    hair = Part(label, paint(rng, ((0.1, 0.08, 0.06), (0.4, 0.3, 0.15), grey(0.5))), place=z)
    canvas.disk(x, shoulder + 0.24 * scale, z, 0.1 * scale, 0.08 * scale, hair)


def two_wheeler(canvas: Canvas, rng: Rng, x, z, name: str, ridden: bool):
    """Draws a bicycle or a motorcycle, along or across the road, with or without a rider."""
    label, colour = LABEL[name], paint(rng, COATS)
    heavy = name == "motorcycle"
    radius, tyre = (0.31, 0.13) if heavy else (0.34, 0.035)
    seat = 0.8 if heavy else 0.92
    frame, rubber = Part(label, colour, place=z), Part(label, DARK, place=z)
    if rng.random() < 0.5:  # seen from the side
        half = 0.68 if heavy else 0.55
        for centre in (x - half, x + half):
            canvas.disk(centre, radius, z, radius, radius, rubber)
            spokes = Part(label, (0.3, 0.3, 0.28), place=z, grain=0.4, size=0.3)
            canvas.disk(centre, radius, z, radius * 0.8, radius * 0.8, spokes)
        depth = 0.45 if heavy else 0.08
        canvas.polygon([(x - half, radius, z), (x - 0.1, seat, z), (x + half * 0.7, seat, z),
                        (x + half, radius, z), (x + half * 0.6, seat - depth, z),
                        (x, radius + 0.1 - depth / 3, z)], frame)  # fmt: skip
        canvas.rectangle(x + half * 0.6, x + half * 0.6 + 0.06, seat, seat + 0.25, z, frame)
    else:
        canvas.rectangle(x - tyre, x + tyre, 0.0, 2 * radius, z, rubber)
        body = 0.22 if heavy else 0.06
        canvas.rectangle(x - body, x + body, radius, seat, z, frame)
        canvas.rectangle(x - 0.33, x + 0.33, seat + 0.12, seat + 0.18, z, frame)
        if heavy:
            lamps(canvas, label, x, z, 0.3, seat - 0.1, coming=rng.random() < 0.5)
    if ridden:
        person(canvas, rng, x, z, "rider", seat)


def pole(canvas: Canvas, rng: Rng, x, z, lamp: bool):
    """Draws a pole, with an arm over the road if it is a street lamp."""
    part = Part(LABEL["pole"], paint(rng, METALS), place=z, grain=0.1)
    height, radius = (rng.uniform(6, 9) if lamp else rng.uniform(2.5, 5)), rng.uniform(0.05, 0.11)
    canvas.rectangle(x - radius, x + radius, 0, height, z, part)
    if lamp:
        tip = x - np.sign(x) * rng.uniform(1, 2)
        canvas.polygon([(x, height, z), (tip, height + 0.3, z), (tip, height + 0.45, z),
                        (x, height + 0.12, z)], part)  # fmt: skip


def traffic_sign(canvas: Canvas, rng: Rng, x, z):
    """Draws a traffic sign on its pole; grey signs are seen from the back."""
    pole_part = Part(LABEL["pole"], paint(rng, METALS), place=z)
    height, size = rng.uniform(2.0, 2.8), rng.uniform(0.28, 0.42)
    canvas.rectangle(x - 0.035, x + 0.035, 0, height, z, pole_part)
    label = LABEL["traffic sign"]
    faces = (
        (0.8, 0.1, 0.1),
        (0.1, 0.25, 0.65),
        (0.85, 0.75, 0.1),
        grey(0.9),
        grey(0.5),
        grey(0.4),
    )
    face = Part(label, paint(rng, faces), place=z, grain=0.05)
    inner = Part(label, paint(rng, faces), place=z, grain=0.05)
    shape = rng.integers(3)
    if shape == 0:
        canvas.disk(x, height, z, size, size, face)
        canvas.disk(x, height, z, size * 0.7, size * 0.7, inner)
    elif shape == 1:
        canvas.polygon([(x - size, height - size * 0.6, z), (x + size, height - size * 0.6, z),
                        (x, height + size, z)], face)  # fmt: skip
        canvas.disk(x, height - size * 0.1, z, size * 0.35, size * 0.35, inner)
    else:
        canvas.rectangle(x - size, x + size, height - size, height + size, z, face)
        canvas.rectangle(
            x - size * 0.6, x + size * 0.6, height - size * 0.5, height + size * 0.5, z, inner
        )


def traffic_light(canvas: Canvas, rng: Rng, x, z):
    """Draws a traffic light on its pole."""
    height = rng.uniform(2.2, 3.4)
    canvas.rectangle(
        x - 0.06, x + 0.06, 0, height, z, Part(LABEL["pole"], paint(rng, METALS), place=z)
    )
    label = LABEL["traffic light"]
    canvas.rectangle(x - 0.17, x + 0.17, height - 0.1, height + 0.85, z, Part(label, DARK, place=z))
    glows = ((0.15, 0.85, 0.35), (0.9, 0.7, 0.1), (0.95, 0.12, 0.1))
    lit = rng.integers(3)
    for i, glow in enumerate(glows):
        colour = glow if i == lit else shade(glow, 0.18)
        canvas.disk(x, height + 0.06 + 0.3 * i, z, 0.11, 0.11, Part(label, colour, place=z))


def tree(canvas: Canvas, rng: Rng, x, z):
    """Draws a tree: a trunk and a cloud of leaves."""
    label = LABEL["vegetation"]
    crown, reach = rng.uniform(2.6, 5.5), rng.uniform(1.2, 2.6)
    trunk = Part(label, paint(rng, ((0.22, 0.17, 0.12), (0.35, 0.3, 0.25))), place=z, grain=0.3)
    canvas.rectangle(x - 0.14, x + 0.14, 0, crown, z, trunk)
    bush(canvas, rng, x, z, crown + reach * 0.5, reach, reach * rng.uniform(0.8, 1.3))


def bush(canvas: Canvas, rng: Rng, x, z, y, reach_x, reach_y):
    """Draws a cloud of leaves centred at height `y`."""
    colour = paint(rng, LEAVES)
    for _ in range(16):
        turn, out = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random()) * 0.75
        leaf = Part(LABEL["vegetation"], shade(colour, rng.uniform(0.7, 1.25)), place=z,
                    grain=0.45, size=rng.uniform(0.5, 1.2))  # fmt: skip
        size = rng.uniform(0.28, 0.5)
        canvas.disk(x + out * np.cos(turn) * reach_x, y + out * np.sin(turn) * reach_y, z,
                    size * reach_x, size * reach_y, leaf)  # fmt: skip
