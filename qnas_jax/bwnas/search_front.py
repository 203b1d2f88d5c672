"""The front, and which of its subnets are trained to the end."""

import logging
from typing import Any

from qnas_jax.bwnas.lut import table
from qnas_jax.run import artefacts
from qnas_jax.run.artefacts import Stage
from qnas_jax.run.config import Config
from qnas_jax.search import front
from qnas_jax.stages.experiment import Setting

logger = logging.getLogger(__name__)


def search_front(
    setting: Setting, populated: Stage, rows: table.Table
) -> tuple[Stage, list[front.Point]]:
    """Finds the front of the NSR and the costs over all subnets.

    Costs are added to the table here, so another target leaves the table as it is.
    """
    how, bytes_, fixed = setting.config.search, setting.fixed_bytes(), setting.fixed_costs()
    rows = setting.with_costs(rows)
    made_from: dict[str, Any] = {"lut": populated.hash}
    if setting.target.costs or how.epsilon:
        columns = {
            name: artefacts.digest([fixed[name], rows.costs[name].tolist()]) for name in fixed
        }
        made_from |= {"costs": how.costs, "epsilon": how.epsilon, "target": columns}
    stage = Stage(setting.workdir / "search", made_from)
    file = stage.folder / "front.csv"
    if not stage.done:
        stage.begin()
        points = front.search(rows, bytes_["stem"], bytes_["head"], how.costs, fixed, how.epsilon)
        front.write(file, points)
        if len(how.costs) > 1:
            for cost in how.costs:
                front.write(stage.folder / f"front_{cost}.csv", front.pair(points, cost))
        deployed = {
            "target": setting.target.name,
            "fixed_costs": fixed,
            "fixed_convs": setting.fixed_convs,
            "places": setting.places(),
        }
        artefacts.write_json(stage.folder / "deployed.json", deployed)
        stage.finish()
        logger.info("search: a front of %d subnets in %.2f s", len(points), stage.seconds)
    return stage, front.read(file)


def chosen(config: Config, points: list[front.Point]) -> list[front.Point]:
    """The subnets to retrain: spread over the front, and the best within the budgets."""
    picked = front.spread(points, config.retrain.subnets, config.search.costs[-1])
    budgets = config.search.budgets()
    if budgets:
        best = front.best_under(points, budgets)
        picked += [] if best in picked else [best]
    return picked
