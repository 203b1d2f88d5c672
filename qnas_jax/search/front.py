"""A front of subnets: the result of a search, as a CSV file with a line for each subnet."""

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.run import artefacts, sheet
from qnas_jax.run.stage import reading
from qnas_jax.search import pareto
from qnas_jax.space import COSTS

# Columns between the NSR and the subnet; the first two are known of every subnet.
SIZES = ("size_bytes", "encoder_size_bytes")
COLUMNS = (*SIZES, *(name for name in COSTS if name not in SIZES))


class Point(NamedTuple):
    """A subnet on a front.

    Attributes:
      rank: Its place by NSR, 0 being the best.
      nsr: Its NSR, summed over the blocks.
      subnet: Its text form.
      costs: Of the whole network, the known ones of `COSTS`; and "encoder_size_bytes", the size
        without the head.
    """

    rank: int
    nsr: float
    subnet: str
    costs: Mapping[str, int | float]


def pair(points: Sequence[Point], cost: str) -> list[Point]:
    """The points that are on the front of the NSR and one cost alone."""
    values = np.array([(point.nsr, point.costs[cost]) for point in points], np.float64)
    return [points[i] for i in pareto.non_dominated(values)]


def best_under(points: Sequence[Point], budgets: Mapping[str, int | float]) -> Point:
    """The subnet of lowest NSR whose whole network meets all budgets.

    Args:
      points: A front of the NSR and all costs that have a budget.
      budgets: The highest allowed value of some costs, by their names.

    Raises:
      InputError: No subnet does; the message gives the lowest value there is.
    """
    return min(within(points, budgets), key=lambda point: point.nsr)


def within(points: Sequence[Point], budgets: Mapping[str, int | float]) -> list[Point]:
    """The subnets whose whole network meets all budgets; raises like `best_under`."""
    found = [p for p in points if all(p.costs[cost] <= most for cost, most in budgets.items())]
    if not found:
        values = np.array([[p.costs[cost] for cost in budgets] for p in points])
        raise refusal(budgets, values)
    return found


def refusal(budgets: Mapping[str, int | float], values: np.ndarray) -> InputError:
    """The error for budgets that no subnet meets.

    Args:
      budgets: The highest allowed value of some costs, by their names.
      values: Costs of subnets, [subnets, budgets].
    """
    for (cost, most), lowest in zip(budgets.items(), values.min(axis=0).tolist(), strict=True):
        if lowest > most:
            asked = _text({cost: most})
            return InputError(f"a budget of {asked}: {COSTS[cost].lowest} {_short(lowest)}")
    over = (values / np.array([*budgets.values()])).max(axis=1)
    nearest = dict(zip(budgets, values[over.argmin()].tolist(), strict=True))
    return InputError(
        f"budgets of {_text(budgets)}: no subnet meets all; the nearest has {_text(nearest)}"
    )


def _text(costs: Mapping[str, int | float]) -> str:
    return " and ".join(f"{_short(value)} {COSTS[cost].unit}" for cost, value in costs.items())


def _short(value: int | float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.6g}"


def spread(points: Sequence[Point], count: int, cost: str = "size_bytes") -> list[Point]:
    """`count` points (or all, if there are fewer) evenly spread by a cost, ends included.

    They are taken from the front of the NSR and that cost alone.
    """
    held = pair(points, cost)
    picked = [held[place] for place in evenly([point.costs[cost] for point in held], count)]
    return sorted(picked, key=lambda point: point.rank)


def evenly(values: Sequence[int | float], count: int) -> list[int]:
    """Returns the places of `count` values (or all), evenly spread between both ends."""
    left, picked = list(range(len(values))), []
    for goal in np.linspace(min(values), max(values), min(count, len(left))):
        near = min(left, key=lambda place: abs(values[place] - goal))
        left.remove(near)
        picked.append(near)
    return picked


def write(path: pathlib.Path, points: Sequence[Point]) -> None:
    """Writes `front.csv`, with the columns that are known."""
    text = io.StringIO()
    known = [name for name in COLUMNS if name in points[0].costs]
    writer = csv.writer(text)
    writer.writerow(("rank", "nsr", *known, "subnet"))
    for point in points:
        costs = [point.costs[name] for name in known]
        writer.writerow((point.rank, point.nsr, *costs, point.subnet))
    artefacts.write(path, text.getvalue())


def read(path: pathlib.Path) -> list[Point]:
    """Reads `front.csv`.

    Raises:
      InputError: It is missing or damaged.
    """
    with reading(path) as file:
        (_, names), *lines = sheet.parse(file.read()) or [(1, [])]
        points = [_point(dict(zip(names, cells, strict=True))) for _, cells in lines]
        if not points:
            raise ValueError("no line")
        for point in points:
            space.parse_subnet(point.subnet)
        return points


def _point(line: Mapping[str, str]) -> Point:
    costs = {}
    for name in COLUMNS:
        if name in SIZES:
            costs[name] = int(line[name])
        elif name in line:
            costs[name] = COSTS[name].kind(line[name])
    return Point(int(line["rank"]), float(line["nsr"]), line["subnet"], costs)
