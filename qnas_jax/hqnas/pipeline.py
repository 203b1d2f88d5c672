"""The order of the stages.

    images > teacher > warm-up > search of each budget > scored draws > training > files > results

Each stage finds its inputs, is skipped or resumed (see `run/stage.py`), and leaves its files in
the folder of the run.
"""

import dataclasses
import functools
import logging
import pathlib
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from qnas_jax import space
from qnas_jax.hqnas import experiment, rivals, searching, shared
from qnas_jax.hqnas.experiment import Begun, begin
from qnas_jax.hqnas.learn import State
from qnas_jax.hqnas.results import Row, as_text, write_results
from qnas_jax.hqnas.searching import Warm
from qnas_jax.run import artefacts, processes
from qnas_jax.run.stage import Stage
from qnas_jax.stages import export as export_stage
from qnas_jax.stages import fit, policies
from qnas_jax.stages.evaluation import Trained
from qnas_jax.stages.experiment import Purpose, key

logger = logging.getLogger(__name__)

RIVALS = {"sequential": rivals.sequential, "bwnas": rivals.bwnas}

__all__ = ["as_text", "begin", "run"]


def run(given: Any, workdir: pathlib.Path) -> dict[str, Any]:
    """Runs every stage that is not finished; returns the content of `hqnas/results.json`.

    Only one process at a time may do that in a folder, or several that work together: they train
    the teacher, then the first does the rest, and the others return {}.

    Raises:
      InputError: A setting, an image or a file of the run cannot be used.
      Diverged: A loss or a state is no longer finite.
      Stopped: SIGTERM came; the same call resumes the run.
    """
    begun = begin(given, workdir)
    return processes.by_first("hqnas", functools.partial(_search_and_train, begun, workdir)) or {}


def _search_and_train(begun: Begun, workdir: pathlib.Path) -> dict[str, Any]:
    """Runs all stages after that of the teacher, in one process."""
    own, rows = begun.config.hqnas, []
    for seed in range(begun.config.seed, begun.config.seed + own.seeds):
        warm = searching.warmed_up(workdir, begun, seed)
        for share in begun.budgets:
            stage, state, limits = searching.of_budget(warm, share)
            likely = shared.subnet_of(begun.network.shared, state.logits)
            added = searching.added_losses(begun, stage, state.params, likely)
            scored = searching.found(begun, stage, state, added, limits, seed, stage.folder)
            stage.finish()
            found = {"hqnas": (stage, scored, stage.seconds)}
            for rival in own.rivals:
                name = f"{rival}-{found['hqnas'][0].folder.name}"
                found[rival] = RIVALS[rival](warm, name, limits)
            start = start_of(warm, state)
            for method, (stage, scored, seconds) in found.items():
                network = train(workdir, begun, stage, start, scored[0].subnet, seed)
                took = {"seconds": seconds, "warmup_seconds": warm.stage.seconds}
                rows.append(Row(seed, share, stage, scored, network, method, took))
    folders = [workdir / "export" / row.network.stage.folder.name for row in rows]
    if own.exports:
        export_stage.check(folders, begun.problem.task, begun.config.export.max_drop)
    return write_results(workdir, begun, rows)


class Start(NamedTuple):
    """The shared weights from which a found network is cut.

    Attributes:
      params: They.
      mark: What they are, for the mark of its stage; nothing for those of its search.
    """

    params: PyTree
    mark: dict[str, str]


def start_of(warm: Warm, state: State) -> Start:
    """Returns the weights of the search, or in a comparison those that no search has shaped."""
    if warm.begun.config.hqnas.rivals:
        return Start(warm.state.params, {"start": warm.stage.hash})
    return Start(state.params, {})


def train(
    workdir: pathlib.Path,
    begun: Begun,
    search: Stage,
    start: Start,
    subnet: space.Subnet,
    seed: int,
) -> Trained:
    """Trains a found network from the shared weights under its bitwidths, and writes its files.

    Args:
      workdir: The folder of the run.
      begun: The run.
      search: The stage that found it.
      start: The shared weights.
      subnet: The network.
      seed: Of the training.
    """
    own, config = begun.config.hqnas, begun.config
    how = fit.training(config)
    recipe = policies.recipe(own.final_steps, own.final_lr)
    how = how._replace(train=dataclasses.replace(how.train, **recipe))
    made_from = {"search": search.hash, "subnet": space.format_subnet(subnet), **recipe}
    made_from |= start.mark
    name = f"{search.folder.name}-{artefacts.digest(made_from)[:6]}"
    stage = Stage(workdir / "retrain" / name, made_from)
    model = begun.problem.student(subnet)
    trained = Trained(stage, model, subnet, policies.NETWORK)
    if not stage.done:
        cut = shared.cut(begun.network.shared, start.params, subnet)
        variables, quantize = experiment.standalone(begun, model, cut, subnet)
        own_key = jax.random.fold_in(key(seed, Purpose.RETRAIN_TRAIN), 0)
        under = policies.UnderPolicy(
            quantize, None, f"retrain {name}", own_key, experiment.norm_images(begun)
        )
        policies.train_policy(workdir, begun.problem, how, trained, variables, under)
    if own.exports:
        export_stage.export(workdir, begun.problem, how, begun.deployed, trained)
    return trained
