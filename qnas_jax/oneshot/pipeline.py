"""The order of the stages.

    images > teacher > supernet > search of each budget, or of the front > retrained subnets > files
    > results

Each stage finds its inputs, is skipped or resumed (see `run/stage.py`), and leaves its files in
the folder of the run.
"""

import pathlib
from typing import Any

from jaxtyping import PyTree

from qnas_jax import space
from qnas_jax.nn import supernet
from qnas_jax.oneshot import searching, training
from qnas_jax.oneshot.config import Config
from qnas_jax.oneshot.experiment import Begun, begin
from qnas_jax.oneshot.results import Row, as_text, write_results
from qnas_jax.stages import export as export_stage
from qnas_jax.stages import fit, policies
from qnas_jax.stages import train as train_stage
from qnas_jax.stages.evaluation import Trained

__all__ = ["as_text", "begin", "run"]


def run(given: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Runs every stage that is not finished; returns the content of `oneshot/results.json`.

    Only one process at a time may do that in a folder.

    Raises:
      InputError: A setting, an image or a file of the run cannot be used.
      Diverged: A loss or a state is no longer finite.
      Stopped: SIGTERM came; the same call resumes the run.
    """
    begun = begin(given, workdir)
    config, how = begun.config, fit.training(begun.config)
    shared = training.train(
        workdir, begun.problem, how, config.oneshot, begun.teacher.stage, begun.variables,
        "supernet",
    )  # fmt: skip
    searches = searching.search(workdir, begun, shared)
    rows = []
    for found in searches:
        for scored in found.chosen:
            network = retrain(workdir, begun, shared, scored.subnet)
            rows.append(Row(found, scored, network))
    folders = {row.network.stage.folder.name: row.network for row in rows}
    exported = [
        export_stage.export(workdir, begun.problem, how, begun.deployed, network).folder
        for network in folders.values()
    ]
    results = write_results(workdir, begun, shared.stage, rows)
    export_stage.check(exported, begun.problem.task, config.export.max_drop)
    return results


def retrain(
    workdir: pathlib.Path, begun: Begun, shared: training.Trained, subnet: space.Subnet
) -> Trained:
    """Trains a subnet as a network of its own, and evaluates it in float and quantized.

    Args:
      workdir: The folder of the run.
      begun: The run.
      shared: The supernet.
      subnet: The subnet.
    """
    config, problem = begun.config, begun.problem
    text = space.format_subnet(subnet)
    stage = train_stage.subnet_stage(workdir, shared.stage, text, config.retrain)
    trained = Trained(stage, problem.student(subnet), subnet)
    how = fit.retraining(fit.training(config), config.retrain)

    def start(fresh: PyTree) -> PyTree:
        if config.retrain.init == "scratch":
            return fresh
        rest, blocks = shared.weights
        return supernet.inherited(fresh, rest, blocks, subnet)

    taught_by = policies.taught_by(config.retrain, problem, begun.variables)
    train_stage.retrain(workdir, problem, how, trained, start, f"retrain {text}", taught_by)
    return trained
