"""The front, and which of its subnets are trained to the end."""

import logging

from qnas_jax import table
from qnas_jax.artefact import Stage
from qnas_jax.config import Config
from qnas_jax.search import front
from qnas_jax.setting import Setting

logger = logging.getLogger(__name__)


def search_front(
    setting: Setting, populated: Stage, rows: table.Table
) -> tuple[Stage, list[front.Point]]:
    """Finds the exact front of (NSR, size) over all subnets."""
    stage = Stage(setting.workdir / "search", {"lut": populated.hash})
    file = stage.folder / "front.csv"
    if not stage.done:
        fixed = setting.fixed_bytes()
        points = front.search(rows, fixed["stem"], fixed["head"])
        front.write(file, points)
        stage.finish()
        logger.info("search: a front of %d subnets in %.2f s", len(points), stage.seconds)
    return stage, front.read(file)


def chosen(config: Config, points: list[front.Point]) -> list[front.Point]:
    """The subnets to retrain: spread over the front, and the best within the budget."""
    picked = front.spread(points, config.retrain.subnets)
    if config.search.budget_bytes:
        best = front.best_under(points, config.search.budget_bytes)
        picked += [] if best in picked else [best]
    return picked
