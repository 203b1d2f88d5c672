"""The front of a table's subnets, and which of them are retrained.

Needs the table and the description of the deployment, no network: `qnas pick` runs the
same functions for other budgets and targets.
"""

import logging
import pathlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from qnas_jax import space
from qnas_jax.bwnas.config import Search
from qnas_jax.bwnas.lut import table
from qnas_jax.bwnas.lut.table import Table
from qnas_jax.errors import InputError
from qnas_jax.hardware import deployment
from qnas_jax.hardware.deployment import Deployment
from qnas_jax.run import artefacts
from qnas_jax.run.stage import Stage, defaults
from qnas_jax.search import front, pareto
from qnas_jax.search.front import Point
from qnas_jax.space import COSTS

logger = logging.getLogger(__name__)

Fixed = Mapping[str, Mapping[str, int | float]]  # by cost and part, see `fixed_costs`


def search_front(
    workdir: pathlib.Path, how: Search, deployed: Deployment, populated: Stage, rows: Table
) -> tuple[Stage, list[Point]]:
    """Finds the front of the NSR and the costs over all subnets; writes `search/`.

    The target's costs are added to the table here, so that the table does not depend on them.

    Args:
      workdir: The run's folder.
      how: The costs to minimize, and how exactly.
      deployed: The search space on its device.
      populated: The stage that made the table.
      rows: The table.
    """
    rows, fixed = with_costs(rows, deployed), deployed.fixed()
    made_from: dict[str, Any] = {"lut": populated.hash}
    if deployed.target.costs or how.epsilon:
        columns = {
            name: artefacts.digest([sum(fixed[name].values()), rows.costs[name].tolist()])
            for name in deployed.target.costs
        }
        made_from |= {"costs": how.costs, "epsilon": how.epsilon, "target": columns}
    stage = Stage(workdir / "search", made_from, defaults(how))
    file = stage.folder / "front.csv"
    if not stage.done:
        stage.begin()
        points = search(rows, fixed, how.costs, how.epsilon)
        front.write(file, points)
        if len(how.costs) > 1:
            for cost in how.costs:
                front.write(stage.folder / f"front_{cost}.csv", front.pair(points, cost))
        deployment.write(stage.folder / "deployed.json", deployed)
        stage.finish()
        logger.info("search: a front of %d subnets in %.2f s", len(points), stage.seconds)
    return stage, front.read(file)


def with_costs(rows: Table, deployed: Deployment) -> Table:
    """The table with a column for each cost of the target; see `table.with_costs`.

    Raises:
      InputError: The target runs no row of the table.
    """
    found = table.with_costs(rows, deployed.matrix(rows.ops, rows.bits))
    if np.isfinite(rows.nsr).any() and not np.isfinite(found.nsr).any():
        raise InputError(f"target {deployed.target.name!r} runs no path of the table")
    return found


def check_budgets(
    searched: space.Space,
    parts: Sequence[table.Part],
    deployed: Deployment,
    budgets: Mapping[str, int | float],
) -> None:
    """Refuses what no subnet can meet, before anything is trained.

    Args:
      searched: Blocks and ops.
      parts: The parts of the table that will be filled.
      deployed: The search space on its device.
      budgets: The highest allowed value of some costs, by their names.

    Raises:
      InputError: The target runs no path of some block, or no subnet meets all budgets.
    """
    if not (budgets or deployed.target.costs):
        return
    fixed = deployed.fixed()
    rows = table.build(np.zeros(sum(part.rows for part in parts)), searched, parts)
    rows = with_costs(rows, deployed)
    for block in range(rows.blocks):
        if not np.isfinite(rows.nsr[rows.rows_of(block)]).any():
            raise InputError(
                f"target {deployed.target.name!r} runs no path of block {block + 1} as a whole"
            )
    if budgets:
        names = tuple(budgets)
        tables = [rows.objectives(block, names) for block in range(rows.blocks)]
        lowest = pareto.pareto_front(tables).objectives[:, 1:]
        lowest = lowest + [sum(fixed[name].values()) for name in names]
        if not (lowest <= list(budgets.values())).all(axis=1).any():
            raise front.refusal(budgets, lowest)


def search(
    rows: Table,
    fixed: Fixed = MappingProxyType({}),
    costs: tuple[str, ...] = ("size_bytes",),
    epsilon: float = 0.0,
) -> list[Point]:
    """The front of the NSR and the costs over all subnets, by ascending NSR.

    Args:
      rows: The look-up table, with all of these costs.
      fixed: What the parts cost that are in no block; nothing where it is not given.
      costs: The costs to minimize together with the NSR, by name.
      epsilon: 0 for the exact front, else the relative error allowed, see `pareto_front`. The
        fronts of the NSR and one cost alone are always exact.

    Raises:
      InputError: The table lacks a cost, no subnet has a finite NSR, or the front is too large.
    """
    if not set(costs) <= set(rows.costs):
        raise InputError(f"costs={costs}: the table has only {tuple(rows.costs)}")
    found = _fold(rows, costs, epsilon)
    if not len(found):
        raise InputError("the table has a block without any finite NSR: nothing can be chosen")
    places = np.stack(
        [rows.rows_of(b)[chosen] for b, chosen in enumerate(found.rows.T)], axis=1
    )  # of the table, [points, blocks]
    texts = {row: space.format_subnet((rows.choices(row),)) for row in np.unique(places)}
    columns = {}
    for name in (name for name in COSTS if name in rows.costs):
        of_part = fixed.get(name, {})
        columns[name] = sum(of_part.values()) + rows.costs[name][places].sum(axis=1)
        if name == "size_bytes":
            columns["encoder_size_bytes"] = columns[name] - of_part.get("head", 0)
    values = {name: column.tolist() for name, column in columns.items()}
    return [
        Point(
            rank,
            nsr,
            "_".join(texts[row] for row in of_blocks),
            {name: column[rank] for name, column in values.items()},
        )
        for rank, (nsr, of_blocks) in enumerate(
            zip(found.objectives[:, 0].tolist(), places, strict=True)
        )
    ]


def _fold(rows: Table, costs: tuple[str, ...], epsilon: float) -> pareto.Front:
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
        np.concatenate([one.objectives for one in fronts]),
        np.concatenate([one.rows for one in fronts]),
    )
    return joined[pareto.non_dominated(joined.objectives)]


def chosen(points: Sequence[Point], how: Search, count: int) -> list[Point]:
    """The subnets to retrain: `count` spread over the front, and the best within the budgets."""
    picked = front.spread(points, count, how.costs[-1])
    if how.budgets:
        best = front.best_under(points, dict(how.budgets))
        picked += [] if best in picked else [best]
    return picked
