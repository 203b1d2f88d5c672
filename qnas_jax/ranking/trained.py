"""Trains the subnets of an audit alike, once for each seed."""

import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from qnas_jax import space
from qnas_jax.bwnas import retraining
from qnas_jax.bwnas.pipeline import Searched
from qnas_jax.ranking.drawn import Drawn
from qnas_jax.report.policies import metrics_of
from qnas_jax.run.stage import Stage, read_json
from qnas_jax.stages import fit
from qnas_jax.stages import train as train_stage
from qnas_jax.stages.evaluation import Trained

logger = logging.getLogger(__name__)


def train(
    workdir: pathlib.Path, found: Searched, drawn: Sequence[Drawn], seeds: Sequence[int]
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Trains the subnets; returns what they reach, and `metrics.json` of each.

    Accuracies are in float ("fp32") and quantized, float64[subnets, seeds].
    Each is trained once for each seed, as `retrain` says, and kept in its own folder.

    Args:
      workdir: The folder of the run.
      found: The run.
      drawn: The subnets.
      seeds: Of the trainings of each.
    """
    config, problem, _, _, variables = found.begun
    begins = retraining.beginning(config, problem, variables, found.params)
    how = fit.retraining(fit.training(config), config.retrain)
    metric = problem.task.metric.name
    by_seed = []
    for seed in seeds:  # other settings are refused before anything takes long
        for one in drawn:
            _stage(workdir, found, one.subnet, seed)
    for seed in seeds:
        rows = []
        for number, one in enumerate(drawn, 1):
            stage = _stage(workdir, found, one.subnet, seed)
            trained = Trained(stage, problem.student(one.subnet), one.subnet)
            title = f"audit {number}/{len(drawn)}, seed {seed}"
            retraining.retrain(workdir, begins, how._replace(seed=seed), trained, title)
            rows.append(read_json(stage.folder / "metrics.json"))
        by_seed.append(rows)
    reached = {
        name: np.array([[row[f"{metric}_{name}"] for row in rows] for rows in by_seed]).T
        for name in ("fp32", "quantized")
    }
    return reached, by_seed[0]


def teachers(workdir: pathlib.Path, found: Searched) -> list[dict[str, Any]]:
    """Returns the teacher as it is, and trained on for as long as a subnet, as rows of a table."""
    config, problem, _, teacher, variables = found.begun
    again = retraining.retrain_teacher(workdir, config, problem, teacher, variables)
    rows = []
    for kind, one in (("teacher", teacher), ("teacher, trained on", again)):
        held = metrics_of(one.stage.folder, problem.task.metric)
        scores = {name: [held[name]] for name in ("fp32", "quantized")}
        rows.append({"kind": kind, "size_bytes": held["size_bytes"], **scores, "subnet": ""})
    return rows


def _stage(workdir: pathlib.Path, found: Searched, subnet: space.Subnet, seed: int) -> Stage:
    text, how = space.format_subnet(subnet), found.begun.config.retrain
    made_from = {
        "supernet": found.distilled.hash,
        "subnet": text,
        "init": how.init,
        **train_stage.recipe(how),
        "seed": seed,
    }
    return Stage(workdir / "audit" / f"seed{seed}" / train_stage.folder_name(text), made_from)
