"""The order of the stages.

    images > teacher > supernet > search of each budget, or of the front > retrained subnets > files
    > results

Each stage finds its inputs, is skipped or resumed (see `run/stage.py`), and leaves its files in
the folder of the run.
"""

import functools
import pathlib
from typing import Any

from jaxtyping import PyTree

from qnas_jax import space
from qnas_jax.nn import supernet
from qnas_jax.oneshot import searching, training
from qnas_jax.oneshot.config import Config
from qnas_jax.oneshot.experiment import Begun, begin
from qnas_jax.oneshot.results import Row, as_text, write_results
from qnas_jax.run import processes
from qnas_jax.stages import export as export_stage
from qnas_jax.stages import fit, policies
from qnas_jax.stages import train as train_stage
from qnas_jax.stages.evaluation import Trained
from qnas_jax.train import mesh

__all__ = ["as_text", "begin", "run"]


def run(given: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Runs every stage that is not finished; returns the content of `oneshot/results.json`.

    Only one process at a time may do that in a folder, or several that work together; all but the
    first return {}.

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
    with processes.first_goes_first("search"):
        searches = searching.search(workdir, begun, shared)
    chosen = [(found, scored) for found in searches for scored in found.chosen]
    # Searches may find the same subnet, which is trained once.
    networks = {
        scored.subnet: network_of(workdir, begun, shared, scored.subnet) for _, scored in chosen
    }
    retraining = (
        functools.partial(retrain, workdir, begun, shared, network)
        for network in networks.values()
        if not network.stage.done
    )
    mesh.train_all(config.train.batch, list(retraining))
    rows = [Row(found, scored, networks[scored.subnet]) for found, scored in chosen]
    return processes.by_first("files", lambda: _finish(workdir, begun, shared, rows)) or {}


def _finish(
    workdir: pathlib.Path, begun: Begun, shared: training.Trained, rows: list[Row]
) -> dict[str, Any]:
    """Writes the files of all networks, and the results."""
    config, how = begun.config, fit.training(begun.config)
    folders = {row.network.stage.folder.name: row.network for row in rows}
    exported = export_stage.export_all(
        workdir, begun.problem, how, begun.deployed, list(folders.values())
    )
    results = write_results(workdir, begun, shared.stage, rows)
    export_stage.check(
        [stage.folder for stage in exported], begun.problem.task, config.export.max_drop
    )
    return results


def network_of(
    workdir: pathlib.Path, begun: Begun, shared: training.Trained, subnet: space.Subnet
) -> Trained:
    """Returns a subnet as a network of its own, and the stage that trains it.

    Args:
      workdir: The folder of the run.
      begun: The run.
      shared: The supernet.
      subnet: The subnet.
    """
    text = space.format_subnet(subnet)
    stage = train_stage.subnet_stage(workdir, shared.stage, text, begun.config.retrain)
    return Trained(stage, begun.problem.student(subnet), subnet)


def retrain(
    workdir: pathlib.Path, begun: Begun, shared: training.Trained, trained: Trained
) -> None:
    """Trains a network of `network_of`, and evaluates it in float and quantized."""
    config, problem = begun.config, begun.problem
    how = fit.retraining(fit.training(config), config.retrain)

    def start(fresh: PyTree) -> PyTree:
        if config.retrain.init == "scratch":
            return fresh
        rest, blocks = shared.weights
        return supernet.inherited(fresh, rest, blocks, trained.subnet)

    taught_by = policies.taught_by(config.retrain, problem, begun.variables)
    title = f"retrain {space.format_subnet(trained.subnet)}"
    train_stage.retrain(workdir, problem, how, trained, start, title, taught_by)
