"""What another system found in the same space, read from the front that it wrote."""

import math
import pathlib
from collections.abc import Sequence

from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.hqnas import derive
from qnas_jax.hqnas.relax import Bounds
from qnas_jax.hqnas.shared import Shared
from qnas_jax.run.paths import named
from qnas_jax.run.stage import seconds_of
from qnas_jax.search import front

STAGES = ("supernet", "lut", "search")  # of a run of QA-BWNAS, from the teacher to the front


def file_of(files: Sequence[str], number: int) -> pathlib.Path:
    """Returns the front for a seed: the only one, or that of its number."""
    return named("hqnas.fronts", files[number % len(files)]).absolute()


def best(file: pathlib.Path, described: Shared, limits: Bounds) -> space.Subnet:
    """Returns the subnet of lowest NSR within the budgets.

    Args:
      file: `front.csv`.
      described: The layers of this run.
      limits: The costs with their budgets.

    Raises:
      InputError: The front cannot be read, has another space, or no subnet within budgets.
    """
    points = front.read(file)
    if not all(math.isfinite(point.nsr) for point in points):
        raise InputError(f"{file}: has an NSR that is no number")
    for point in sorted(points, key=lambda point: point.nsr):
        subnet = space.parse_subnet(point.subnet)
        choices = [choice for block in subnet for choice in block]
        known = all(
            c.op in described.ops and {c.w_bits, c.a_bits} <= set(described.bits) for c in choices
        )
        if not known or tuple(map(len, subnet)) != described.depths:
            raise InputError(f"{file}: {point.subnet} is not in the space of this run")
        costs = {name: derive.cost_of(described, subnet, one) for name, one in limits.items()}
        if all(
            cost <= float(limits[name].budget) * (1 + derive.SLACK) for name, cost in costs.items()
        ):
            return subnet
    raise InputError(f"{file}: {derive.refusal(limits)}")


def check(files: Sequence[str], described: Shared, bounds: Sequence[Bounds]) -> None:
    """Looks for the subnets before anything takes long; raises like `best`."""
    for number in range(len(files)):
        for limits in bounds:
            best(file_of(files, number), described, limits)


def seconds(file: pathlib.Path) -> float:
    """Returns how long the run took from the teacher to the front; 0 if its folders are missing."""
    return sum((seconds_of(file.parents[1] / name) for name in STAGES), 0.0)
