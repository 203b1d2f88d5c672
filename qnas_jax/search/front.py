"""The front as a file: the non-dominated subnets of a search, one a line."""

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from qnas_jax import space
from qnas_jax.bwnas.lut import table
from qnas_jax.errors import InputError
from qnas_jax.run import artefacts, sheet
from qnas_jax.search import pareto


class Point(NamedTuple):
    """A subnet on the front; a line of `front.csv`."""

    rank: int  # by NSR, 0 the best
    nsr: float  # summed over the blocks
    size_bytes: int  # of the whole network
    encoder_size_bytes: int  # of the network without its head
    subnet: str
    latency_ms: float | None = None  # of the whole network; None where no target tells it
    energy_mj: float | None = None


EXTRA = space.COSTS[1:]
COLUMNS = (*Point._fields[:4], *EXTRA, "subnet")  # of the file
# How a budget of each cost is spoken of.
_WORDS = {
    "size_bytes": ("bytes", "the smallest subnet has"),
    "latency_ms": ("ms", "the fastest subnet takes"),
    "energy_mj": ("mJ", "the thriftiest subnet takes"),
}


def search(
    rows: table.Table,
    stem_bytes: int,
    head_bytes: int,
    costs: tuple[str, ...] = ("size_bytes",),
    fixed: Mapping[str, int | float] = MappingProxyType({}),
    epsilon: float = 0.0,
) -> list[Point]:
    """The front of the NSR and the costs over all subnets, by ascending NSR.

    Args:
      rows: The look-up table.
      stem_bytes: Size of the part of the encoder that is in no block.
      head_bytes: Size of all behind the encoder.
      costs: Columns of the table, which are to be low like the NSR.
      fixed: What those parts take of the table's other costs.
      epsilon: 0 for the exact front; else how far it may be off, see `pareto_front`. The fronts
        of the NSR and one cost alone are exact all the same.

    Raises:
      InputError: No subnet has a finite NSR, or the front is too large.
    """
    found = _fold(rows, costs, epsilon)
    if not len(found):
        raise InputError("the table has a block without any finite NSR: nothing can be chosen")
    places = np.stack(
        [rows.rows_of(b)[chosen] for b, chosen in enumerate(found.rows.T)], axis=1
    )  # of the table, [points, blocks]
    texts = {row: space.format_subnet((rows.choices(row),)) for row in np.unique(places)}
    encoders = stem_bytes + rows.costs["size_bytes"][places].sum(axis=1)
    extra = [
        (fixed[name] + rows.costs[name][places].sum(axis=1)).tolist()
        if name in rows.costs
        else [None] * len(found)
        for name in EXTRA
    ]
    points = zip(
        range(len(found)),
        found.objectives[:, 0].tolist(),
        (encoders + head_bytes).tolist(),
        encoders.tolist(),
        ("_".join(texts[row] for row in blocks) for blocks in places),
        *extra,
        strict=True,
    )
    return [Point(*point) for point in points]


def _fold(rows: table.Table, costs: tuple[str, ...], epsilon: float) -> pareto.Front:
    tables = [rows.objectives(b, costs) for b in range(rows.blocks)]
    found = pareto.pareto_front(tables, epsilon)
    if not epsilon or len(costs) == 1:
        return found
    fronts = [found]
    for cost in range(1, len(costs) + 1):
        pair = pareto.pareto_front([columns[:, [0, cost]] for columns in tables]).rows
        sums = sum(columns[chosen] for columns, chosen in zip(tables, pair.T, strict=True))
        fronts.append(pareto.Front(np.asarray(sums), pair))
    joined = pareto.Front(
        np.concatenate([front.objectives for front in fronts]),
        np.concatenate([front.rows for front in fronts]),
    )
    return joined[pareto.non_dominated(joined.objectives)]


def pair(points: Sequence[Point], cost: str) -> list[Point]:
    """The points that are on the front of the NSR and one cost alone."""
    values = np.array([(point.nsr, getattr(point, cost)) for point in points], np.float64)
    return [points[i] for i in pareto.non_dominated(values)]


def best_under(points: Sequence[Point], budgets: Mapping[str, int | float]) -> Point:
    """The subnet of lowest NSR whose whole network meets all budgets.

    Args:
      points: A front of the NSR and all costs that have a budget.
      budgets: The highest allowed value of some costs, by their names.

    Raises:
      InputError: None does; the message says the least there is.
    """
    return min(within(points, budgets), key=lambda point: point.nsr)


def within(points: Sequence[Point], budgets: Mapping[str, int | float]) -> list[Point]:
    """The subnets whose whole network meets all budgets; raises like `best_under`."""
    found = [p for p in points if all(getattr(p, cost) <= most for cost, most in budgets.items())]
    if not found:
        values = np.array([[getattr(p, cost) for cost in budgets] for p in points])
        raise refusal(budgets, values)
    return found


def refusal(budgets: Mapping[str, int | float], values: np.ndarray) -> InputError:
    """What is said of budgets that no subnet meets; values: [subnets, budgets]."""
    for (cost, most), least in zip(budgets.items(), values.min(axis=0).tolist(), strict=True):
        if least > most:
            unit, words = _WORDS[cost]
            return InputError(f"a budget of {_short(most)} {unit}: {words} {_short(least)}")
    asked = " and ".join(f"{_short(most)} {_WORDS[cost][0]}" for cost, most in budgets.items())
    over = (values / np.array([*budgets.values()])).max(axis=1)
    nearest = values[over.argmin()].tolist()
    has = " and ".join(f"{_short(v)} {_WORDS[c][0]}" for v, c in zip(nearest, budgets, strict=True))
    return InputError(f"budgets of {asked}: no subnet meets all; the nearest has {has}")


def _short(value: int | float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.6g}"


def spread(points: Sequence[Point], count: int, cost: str = "size_bytes") -> list[Point]:
    """`count` points (or all, if there are fewer) evenly spread by a cost, ends included.

    They are taken from the front of the NSR and that cost alone.
    """
    left = pair(points, cost)
    values = [getattr(point, cost) for point in left]
    picked = []
    for goal in np.linspace(min(values), max(values), min(count, len(left))):
        near = min(left, key=lambda point: abs(getattr(point, cost) - goal))
        left.remove(near)
        picked.append(near)
    return sorted(picked)


def write(path: pathlib.Path, points: Sequence[Point]) -> None:
    """Writes `front.csv`, with the columns that are known."""
    text = io.StringIO()
    known = [name for name in COLUMNS if getattr(points[0], name) is not None]
    writer = csv.writer(text)
    writer.writerow(known)
    writer.writerows([getattr(point, name) for name in known] for point in points)
    artefacts.write(path, text.getvalue())


def read(path: pathlib.Path) -> list[Point]:
    """Reads `front.csv`.

    Raises:
      InputError: It is missing, or no such file.
    """
    with artefacts.reading(path) as file:
        (_, names), *lines = sheet.parse(file.read()) or [(1, [])]
        points = [
            Point(
                int(line["rank"]),
                float(line["nsr"]),
                int(line["size_bytes"]),
                int(line["encoder_size_bytes"]),
                line["subnet"],
                *(float(line[name]) if name in line else None for name in EXTRA),
            )
            for line in (dict(zip(names, cells, strict=True)) for _, cells in lines)
        ]
        if not points:
            raise ValueError("no line")
        for point in points:
            space.parse_subnet(point.subnet)
        return points
