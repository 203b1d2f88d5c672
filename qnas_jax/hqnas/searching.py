"""The stages that train shared weights: the warm-up, and the search of each budget."""

import enum
import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from qnas_jax import space
from qnas_jax.hqnas import adapt, derive, experiment, learn, relax, scores, shared
from qnas_jax.hqnas.config import Config
from qnas_jax.hqnas.derive import Scored
from qnas_jax.hqnas.experiment import Begun
from qnas_jax.hqnas.learn import How, State
from qnas_jax.hqnas.relax import Bounds
from qnas_jax.hqnas.shared import Shares
from qnas_jax.run import artefacts
from qnas_jax.run.stage import Stage, reading
from qnas_jax.stages import fit
from qnas_jax.stages.experiment import Purpose, key
from qnas_jax.stages.scoring import Evaluate, remembering
from qnas_jax.train import loop, mesh, optimizers

PHASE_SEEDS = 1 << 20  # between the seeds of batches of two phases


class Phase(enum.IntEnum):
    """What trains the shared weights."""

    WARMUP = 0
    SEARCH = 1
    ADAPTATION = 2


class Warm(NamedTuple):
    """A seed of a run, whose shared weights are warmed up: where every search begins.

    Attributes:
      workdir: The folder of the run.
      begun: The run.
      seed: Of all draws.
      stage: The stage of the warm-up.
      state: Its state.
    """

    workdir: pathlib.Path
    begun: Begun
    seed: int
    stage: Stage
    state: State


def warmed_up(workdir: pathlib.Path, begun: Begun, seed: int) -> Warm:
    """Trains the shared weights under random choices, all equally likely."""
    own = begun.config.hqnas
    made_from = {
        "teacher": begun.teacher.stage.hash,
        "space": [str(op) for op in begun.problem.space.ops],
        "depths": [block.depth for block in begun.problem.space.blocks],
        "bits": list(own.bits),
        "steps": own.warmup_steps,
        "batch": own.batch,
        "lr": own.lr,
        "relaxation": own.relaxation,
        "transform": own.transform,
        "temperature": list(own.temperature),
        "held_out": own.score_images,
        "costs": [own.cost, *begun.limits],  # the state has a weight for each
        "seed": seed,
    }
    stage = Stage(workdir / "hqnas" / f"warmup-s{seed}", made_from)
    stage.begin()
    how = how_of(begun, own.warmup_steps, logit_lr=0.0)._replace(damping=0.0)
    any_budget = experiment.bounds(begun, max(begun.budgets.values()))
    logits = relax.first(begun.network.shared, 0.0)
    state = learn.begin(begun.params, logits, tuple(any_budget))
    state = learned(workdir, begun, stage, how, state, any_budget, seed, Phase.WARMUP, "warm-up")
    stage.finish()
    return Warm(workdir, begun, seed, stage, state)


def searched(warm: Warm, name: str, logits: Shares, limits: Bounds) -> tuple[Stage, State]:
    """Trains shared weights and logits together, within budgets.

    Args:
      warm: Where it begins.
      name: Of the folder.
      logits: The first ones.
      limits: The costs with their budgets.
    """
    workdir, begun, seed, *_ = warm
    own = begun.config.hqnas
    recipe = ("steps", "batch", "lr", "logit_lr", "bilevel", "relaxation", "temperature", "rate",
              "most_weight", "damping", "samples", "neighbours", "near_images", "norm_images",
              "choice_images")  # fmt: skip
    made_from = {
        "warmup": warm.stage.hash,
        "bounds": {cost: artefacts.digest(_listed(one)) for cost, one in limits.items()},
        "logits": artefacts.digest(_listed(logits)),
        **{name: artefacts.plain(own)[name] for name in recipe},
    }
    # A search that an older version has finished keeps the subnets that it derived.
    older = {name: made_from[name] for name in ("neighbours", "near_images")}
    stage = Stage(workdir / "hqnas" / name, made_from, older)
    stage.begin()
    how = how_of(begun, own.steps, own.logit_lr)
    state = learn.begin(warm.state.params, logits, tuple(limits))
    title = f"search {name}"
    state = learned(workdir, begun, stage, how, state, limits, seed, Phase.SEARCH, title)
    return stage, state


def of_budget(warm: Warm, share: float) -> tuple[Stage, State, Bounds]:
    """Searches within a budget; returns the stage, its state and the costs that bound it.

    Args:
      warm: Where it begins.
      share: The budget as the config has it.
    """
    begun = warm.begun
    limits = experiment.bounds(begun, begun.budgets[share])
    logits = relax.first(begun.network.shared, begun.config.hqnas.first_bits)
    name = folder_name(begun.config, share, warm.seed)
    return *searched(warm, name, logits, limits), limits


def _listed(arrays: tuple) -> list:
    return [np.asarray(part).tolist() for part in arrays]


def added_losses(
    begun: Begun, stage: Stage, params: PyTree, subnet: space.Subnet, name: str = "choices.npz"
) -> Shares:
    """Returns what each choice of each layer adds to the loss of a subnet, alone.

    It is computed once and kept in the folder of the stage.

    Args:
      begun: The run.
      stage: The stage.
      params: The shared weights.
      subnet: The subnet around which choices are scored.
      name: Of the file.
    """
    file, described = stage.folder / name, begun.network.shared
    if not file.exists():
        counts = len(described.ops), len(described.bits), len(described.bits)
        losses = scores.imitations(begun, params, begun.config.hqnas.choice_images)
        total = 1 + sum((count - 1) * len(described.layers) for count in counts)
        losses = scores.with_progress(losses, "choices of the layers", total)
        added = adapt.sensitivities(losses, shared.codes_of(described, subnet), counts)
        with artefacts.writing(file) as out:
            held = {name: np.asarray(part) for name, part in added._asdict().items()}
            np.savez_compressed(out, allow_pickle=False, **held)
    with reading(file) as content, np.load(content) as held:
        found = Shares(*(jnp.asarray(held[name]) for name in Shares._fields))
        if jax.tree.map(jnp.shape, found) != jax.tree.map(jnp.shape, relax.first(described, 0.0)):
            raise ValueError("has other layers or choices")
    return found


def folder_name(config: Config, share: float, seed: int) -> str:
    """Returns the folder of a search."""
    return f"{config.hardware.target}-{config.hqnas.cost}-{share:g}-s{seed}"


def how_of(begun: Begun, steps: int, logit_lr: float) -> How:
    """Returns how a number of steps learns."""
    own = begun.config.hqnas
    first, last = own.temperature
    return How(steps, own.lr, logit_lr, (first, last), own.rate, own.most_weight, own.damping)


def learned(
    workdir: pathlib.Path,
    begun: Begun,
    stage: Stage,
    how: How,
    state: State,
    limits: Bounds,
    seed: int,
    phase: Phase,
    title: str,
) -> State:
    """Returns the state after a stage's steps, with checkpoints, metrics and progress.

    Args:
      workdir: The folder of the run.
      begun: The run.
      stage: The stage; if it is finished, its last state is read.
      how: How many steps, and how they learn.
      state: The first state.
      limits: The costs with their budgets.
      seed: Of the draws.
      phase: Of the run; each has random numbers and batches of its own.
      title: Name of the training in log lines.
    """
    training, own = fit.training(begun.config), begun.config.hqnas
    draws = jax.random.fold_in(key(seed, Purpose.SUPERNET_TRAIN), phase)
    rate = optimizers.cosine(own.lr, int(how.steps), 0)
    watched = loop.Watched("the shared weights", "loss", rate, "hqnas.lr", lambda state: state)
    planned = fit.plan(stage, training, title, int(how.steps), [watched])
    training = training._replace(seed=seed + phase * PHASE_SEEDS)
    make_batch = fit.batches(begun.problem.train, training, own.batch)
    steps = loop.with_constants(begun.steps, jax.tree.map(jnp.asarray, how), limits, draws)
    return fit.fit(workdir, planned, steps, state, make_batch, mesh.layout(own.batch))


def found(
    begun: Begun,
    stage: Stage,
    state: State,
    added: Shares,
    limits: Bounds,
    seed: int,
    weights: pathlib.Path,
    prices: derive.Prices = derive.NO_PRICES,
    parts: Sequence[int] = (0, 1, 2),
) -> list[Scored]:
    """Returns the drawn subnets, the best first; they are kept in `subnets.json`.

    Args:
      begun: The run.
      stage: The stage of the search, or of an adaptation.
      state: Shared weights and logits.
      added: What each choice adds to the loss.
      limits: The costs that bound them; the first is shown.
      seed: Of the draws.
      weights: The folder of the shared weights, which holds all scores with them.
      prices: Of costs that have no budget, see `adapt.adapted`.
      parts: What a local search may change, see `derive.climbed`.
    """
    file = stage.folder / "subnets.json"
    if not file.exists():
        described, own = begun.network.shared, begun.config.hqnas
        evaluate = remembered(begun, weights, state.params)
        rows = derive.scored(
            described,
            state.logits,
            limits,
            added,
            lambda subnets: evaluate(
                np.stack([shared.codes_of(described, one) for one in subnets])
            ),
            key(seed, Purpose.SUPERNET_PATHS),
            own.samples,
            prices,
        )
        first = rows[0].subnet
        best = climbed(begun, state.params, first, added, limits, seed, prices, parts)
        if best != first:
            rows.insert(0, scored_alone(begun, stage, state.params, best, limits))
        held = [(space.format_subnet(s), cost, accuracy) for s, cost, accuracy in rows]
        probabilities = [np.asarray(p).tolist() for p in relax.probabilities(state.logits)]
        artefacts.write_json(file, {"subnets": held, "probabilities": probabilities})
    return read_subnets(file)


def climbed(
    begun: Begun,
    params: PyTree,
    subnet: space.Subnet,
    added: Shares,
    limits: Bounds,
    seed: int,
    prices: derive.Prices = derive.NO_PRICES,
    parts: Sequence[int] = (0, 1, 2),
) -> space.Subnet:
    """Returns a subnet of lower loss with the shared weights; see `derive.climbed`."""
    own = begun.config.hqnas
    if not own.neighbours:
        return subnet
    losses = scores.imitations(begun, params, own.near_images)
    losses = scores.with_progress(losses, "neighbours", own.neighbours)
    near = jax.random.fold_in(key(seed, Purpose.SUPERNET_PATHS), 1)
    return derive.climbed(
        begun.network.shared, subnet, limits, added, losses, near, own.neighbours, prices, parts
    )


def read_subnets(file: pathlib.Path) -> list[Scored]:
    """Returns the scored subnets of a stage, the best first.

    Raises:
      InputError: The file is damaged.
    """
    with reading(file) as content:
        rows = json.load(content)["subnets"]
        if not rows:
            raise ValueError("has no subnet")
        return [Scored(space.parse_subnet(s), float(c), float(a)) for s, c, a in rows]


def scored_alone(
    begun: Begun, stage: Stage, params: PyTree, subnet: space.Subnet, limits: Bounds
) -> Scored:
    """Returns a subnet with its cost, the first of the limits, and its score."""
    described, first = begun.network.shared, next(iter(limits.values()))
    found = remembered(begun, stage.folder, params)(shared.codes_of(described, subnet)[None])
    return Scored(subnet, derive.cost_of(described, subnet, first), float(found.accuracy[0]))


def remembered(begun: Begun, weights: pathlib.Path, params: PyTree) -> Evaluate:
    """Returns what scores subnets with the shared weights of a search, each once."""
    return remembering(scores.scorer(begun, params), weights / "scores.npz", "subnets")
