"""The order of the stages.

    images > teacher > warm-up > search of each budget > scored draws > training > files > results

Each stage finds its inputs, is skipped or resumed (see `run/stage.py`), and leaves its files in
the folder of the run.
"""

import dataclasses
import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from qnas_jax import space
from qnas_jax.hqnas import derive, experiment, learn, relax, shared
from qnas_jax.hqnas.config import Config
from qnas_jax.hqnas.derive import Scored
from qnas_jax.hqnas.experiment import Begun, begin
from qnas_jax.hqnas.learn import How, State
from qnas_jax.hqnas.results import Row, as_text, write_results
from qnas_jax.run import artefacts
from qnas_jax.run.stage import Stage, read_json
from qnas_jax.stages import export as export_stage
from qnas_jax.stages import fit, policies
from qnas_jax.stages.experiment import Purpose, key
from qnas_jax.stages.scoring import Evaluate, remembering
from qnas_jax.stages.train import Trained
from qnas_jax.train import loop, optimizers

logger = logging.getLogger(__name__)

__all__ = ["as_text", "begin", "run"]


def run(given: Any, workdir: pathlib.Path) -> dict[str, Any]:
    """Runs every stage that is not finished; returns the content of `hqnas/results.json`.

    Only one process at a time may do that in a folder.

    Raises:
      InputError: A setting, an image or a file of the run cannot be used.
      Diverged: A loss or a state is no longer finite.
      Stopped: SIGTERM came; the same call resumes the run.
    """
    begun = begin(given, workdir)
    rows, trained = [], []
    for seed in range(begun.config.seed, begun.config.seed + begun.config.hqnas.seeds):
        warm_stage, warm = warmed_up(workdir, begun, seed)
        for share in begun.budgets:
            stage, state = searched(workdir, begun, warm_stage, warm, seed, share)
            limits = experiment.bounds(begun, begun.budgets[share])[begun.config.hqnas.cost]
            scored = found(begun, stage, state, limits, seed, stage)
            network = train(workdir, begun, stage, state.params, scored[0].subnet, seed)
            stage.finish()
            rows.append(Row(seed, share, stage, scored, network, warm_stage.seconds))
            trained.append(network)
    folders = [workdir / "export" / one.stage.folder.name for one in trained]
    if begun.config.hqnas.exports:
        export_stage.check(folders, begun.problem.task, begun.config.export.max_drop)
    return write_results(workdir, begun, rows)


def warmed_up(workdir: pathlib.Path, begun: Begun, seed: int) -> tuple[Stage, State]:
    """Trains the shared weights under random choices."""
    own = begun.config.hqnas
    made_from = {
        "teacher": begun.teacher.stage.hash,
        "space": [str(op) for op in begun.problem.space.ops],
        "depths": [block.depth for block in begun.problem.space.blocks],
        "bits": list(own.bits),
        "steps": own.warmup_steps,
        "batch": own.batch,
        "lr": own.lr,
        "temperature": list(own.temperature),
        "held_out": own.score_images,
        "seed": seed,
    }
    stage = Stage(workdir / "hqnas" / f"warmup-s{seed}", made_from)
    stage.begin()
    how = _how(begun, own.warmup_steps, logit_lr=0.0)
    logits = relax.zeros(begun.network.shared)
    state = learn.begin(begun.params, logits, (own.cost,))
    any_budget = experiment.bounds(begun, max(begun.budgets.values()))
    state = _fit(workdir, begun, stage, how, state, any_budget, seed, "warm-up")
    stage.finish()
    return stage, state


def searched(
    workdir: pathlib.Path, begun: Begun, warm: Stage, start: State, seed: int, share: float
) -> tuple[Stage, State]:
    """Trains shared weights and logits together, within a budget."""
    own = begun.config.hqnas
    values, fixed = begun.costs[own.cost]
    recipe = ("steps", "batch", "lr", "logit_lr", "bilevel", "temperature", "rate", "most_weight",
              "samples", "norm_images")  # fmt: skip
    made_from = {
        "warmup": warm.hash,
        "cost": own.cost,
        "costs": artefacts.digest([values.ravel().tolist(), fixed]),
        "budget": begun.budgets[share],
        **{name: artefacts.plain(own)[name] for name in recipe},
    }
    name = folder_name(begun.config, share, seed)
    stage = Stage(workdir / "hqnas" / name, made_from)
    stage.begin()
    how = _how(begun, own.steps, own.logit_lr)
    logits = relax.zeros(begun.network.shared)
    state = learn.begin(start.params, logits, (own.cost,))
    limits = experiment.bounds(begun, begun.budgets[share])
    return stage, _fit(workdir, begun, stage, how, state, limits, seed, f"search {name}")


def folder_name(config: Config, share: float, seed: int) -> str:
    """Returns the folder of a search."""
    return f"{config.hardware.target}-{config.hqnas.cost}-{share:g}-s{seed}"


def _how(begun: Begun, steps: int, logit_lr: float) -> How:
    own = begun.config.hqnas
    first, last = own.temperature
    return How(steps, own.lr, logit_lr, (first, last), own.rate, own.most_weight)


def _fit(workdir, begun: Begun, stage: Stage, how: How, state: State, limits, seed, title):
    """Runs the steps with checkpoints, metrics and progress."""
    training, own = fit.training(begun.config), begun.config.hqnas
    step = learn.step(begun.network, own.bilevel)
    draws = key(seed, Purpose.SUPERNET_TRAIN)
    rate = optimizers.cosine(own.lr, int(how.steps), 0)
    watched = loop.Watched("the shared weights", "loss", rate, "hqnas.lr", lambda state: state)
    planned = fit.plan(stage, training, title, int(how.steps), [watched])
    make_batch = fit.batches(begun.problem.train, training._replace(seed=seed), own.batch)
    steps = loop.several(step, jax.tree.map(jnp.asarray, how), limits, draws)
    return fit.fit(workdir, planned, steps, state, make_batch)


def found(
    begun: Begun, stage: Stage, state: State, limits: relax.Costs, seed: int, base: Stage
) -> list[Scored]:
    """Returns the drawn subnets, the best first; they are kept in `subnets.json`.

    Args:
      begun: The run.
      stage: The stage of the search, or of an adaptation.
      state: Shared weights and logits.
      limits: The cost that bounds them.
      seed: Of the draws.
      base: The stage of the search, which holds all scores with its shared weights.
    """
    file = stage.folder / "subnets.json"
    if not file.exists():
        described = begun.network.shared
        rows = derive.scored(
            described,
            state.logits,
            limits,
            lambda subnets: (
                scores(begun, base, state.params)(
                    np.stack([shared.codes_of(described, one) for one in subnets])
                ).accuracy
            ),
            key(seed, Purpose.SUPERNET_PATHS),
            begun.config.hqnas.samples,
        )
        held = [(space.format_subnet(s), cost, accuracy) for s, cost, accuracy in rows]
        probabilities = [np.asarray(p).tolist() for p in relax.probabilities(state.logits)]
        artefacts.write_json(file, {"subnets": held, "probabilities": probabilities})
    return [Scored(space.parse_subnet(s), *rest) for s, *rest in read_json(file)["subnets"]]


def scores(begun: Begun, base: Stage, params: PyTree) -> Evaluate:
    """Returns what scores subnets with the shared weights of a search, each once."""
    return remembering(experiment.scorer(begun, params), base.folder / "scores.npz", "subnets")


def train(
    workdir: pathlib.Path,
    begun: Begun,
    search: Stage,
    params: PyTree,
    subnet: space.Subnet,
    seed: int,
) -> Trained:
    """Trains a found network from the shared weights under its bitwidths, and writes its files."""
    own, config = begun.config.hqnas, begun.config
    how = fit.training(config)
    recipe = policies.recipe(own.final_steps, own.final_lr)
    how = how._replace(train=dataclasses.replace(how.train, **recipe))
    made_from = {"search": search.hash, "subnet": space.format_subnet(subnet), **recipe}
    name = f"{search.folder.name}-{artefacts.digest(made_from)[:6]}"
    stage = Stage(workdir / "retrain" / name, made_from)
    model = begun.problem.student(subnet)
    if stage.done:
        trained = Trained(stage, model, subnet, policies.NETWORK)
    else:
        cut = shared.cut(begun.network.shared, params, subnet)
        start, quantize = experiment.standalone(begun, model, cut, subnet)
        trained = policies.train_policy(
            workdir, begun.problem, how, stage, model, start, quantize, None, f"retrain {name}",
            jax.random.fold_in(key(seed, Purpose.RETRAIN_TRAIN), 0),
            experiment.norm_images(begun), subnet,
        )  # fmt: skip
    if own.exports:
        export_stage.export(workdir, begun.problem, how, begun.deployed, trained)
    return trained
