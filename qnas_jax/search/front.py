"""The front as a file: the non-dominated subnets of a search, one a line."""

import csv
import io
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qnas_jax import artefact, space, table
from qnas_jax.errors import InputError
from qnas_jax.search import pareto


class Point(NamedTuple):
    """A subnet on the front; a line of `front.csv`."""

    rank: int  # by NSR, 0 the best
    nsr: float  # summed over the blocks
    size_bytes: int  # of the whole network
    encoder_size_bytes: int  # of the network without its head
    subnet: str


def search(rows: table.Table, stem_bytes: int, head_bytes: int) -> list[Point]:
    """The exact front of (NSR, size) over all subnets, by ascending NSR.

    Args:
      rows: The look-up table.
      stem_bytes: Size of the part of the encoder that is in no block.
      head_bytes: Size of all behind the encoder.

    Raises:
      InputError: No subnet has a finite NSR.
    """
    front = pareto.pareto_front([rows.objectives(b, ("size_bytes",)) for b in range(rows.blocks)])
    if not len(front):
        raise InputError("the table has a block without any finite NSR: nothing can be chosen")
    points = []
    for rank, (objectives, places) in enumerate(zip(front.objectives, front.rows, strict=True)):
        blocks = [rows.choices(int(rows.rows_of(b)[place])) for b, place in enumerate(places)]
        encoder = stem_bytes + int(objectives[1])
        text = space.format_subnet(tuple(blocks))
        points.append(Point(rank, float(objectives[0]), encoder + head_bytes, encoder, text))
    return points


def best_under(points: Sequence[Point], budget_bytes: int) -> Point:
    """The subnet of lowest NSR whose whole network fits into the budget.

    Raises:
      InputError: None does; the message says the smallest size there is.
    """
    within = [point for point in points if point.size_bytes <= budget_bytes]
    if not within:
        smallest = min(point.size_bytes for point in points)
        raise InputError(f"a budget of {budget_bytes} bytes: the smallest subnet has {smallest}")
    return min(within, key=lambda point: point.nsr)


def spread(points: Sequence[Point], count: int) -> list[Point]:
    """`count` points (or all, if there are fewer) evenly spread by size, ends included."""
    left = list(points)
    sizes = [point.size_bytes for point in points]
    picked = []
    for goal in np.linspace(min(sizes), max(sizes), min(count, len(left))):
        near = min(left, key=lambda point: abs(point.size_bytes - goal))
        left.remove(near)
        picked.append(near)
    return sorted(picked)


def write(path: pathlib.Path, points: Sequence[Point]) -> None:
    """Writes `front.csv`."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(Point._fields)
    writer.writerows(points)
    with artefact.writing(path) as file:
        file.write(text.getvalue().encode())


def read(path: pathlib.Path) -> list[Point]:
    """Reads `front.csv`.

    Raises:
      InputError: It is missing, or no such file.
    """
    try:
        with path.open() as file:
            points = [
                Point(
                    int(line["rank"]),
                    float(line["nsr"]),
                    int(line["size_bytes"]),
                    int(line["encoder_size_bytes"]),
                    line["subnet"],
                )
                for line in csv.DictReader(file)
            ]
        if not points:
            raise ValueError("no line")
        for point in points:
            space.parse_subnet(point.subnet)
        return points
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = f"cannot be read as a front ({error}); delete {path.parent}"
        raise InputError(f"{path}: {reason}") from None
