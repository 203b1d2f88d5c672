"""Adaptations of a finished search; each is a new result with a name, and older ones stay."""

import copy
import dataclasses
import logging
import pathlib
import re
import time
from typing import Any

import jax
import jax.numpy as jnp

from qnas_jax import hardware
from qnas_jax.data.batching import Dataset, Part
from qnas_jax.data.corruptions import Corrupted
from qnas_jax.data.frequencies import Resampled
from qnas_jax.errors import InputError
from qnas_jax.hardware.target import check_per_channel, check_w_bits
from qnas_jax.hqnas import adapt, derive, experiment, learn, pipeline, searching, shared
from qnas_jax.hqnas.config import Config
from qnas_jax.hqnas.experiment import Begun
from qnas_jax.hqnas.learn import State
from qnas_jax.hqnas.pipeline import Start
from qnas_jax.hqnas.relax import Costs
from qnas_jax.hqnas.results import Row, write_results
from qnas_jax.hqnas.searching import Phase
from qnas_jax.run.stage import Stage, hash_of, is_finished
from qnas_jax.stages import budgets, fit, policies
from qnas_jax.stages import export as export_stage
from qnas_jax.stages.experiment import Problem
from qnas_jax.train import checkpoint

logger = logging.getLogger(__name__)


def run(given: Config, workdir: pathlib.Path, name: str) -> dict[str, Any]:
    """Adapts a finished search; returns the content of `hqnas/results.json`.

    Args:
      given: The config of the run; its section `adapt` says what changes.
      workdir: The folder of the run.
      name: Of the adaptation.

    Raises:
      InputError: The search is not finished, a setting cannot be used, or the name is that of
        another adaptation.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        rule = "must be a name of at most 64 letters, digits, '.', '_' and '-'"
        raise InputError(f"--adapt={name!r}: {rule}")
    given.check()
    share = given.adapt.of or given.hqnas.budgets[0]
    seed = given.seed if given.adapt.seed < 0 else given.adapt.seed
    base = searching.folder_name(given, share, seed)
    if not is_finished(workdir / "hqnas" / base):
        rule = "is not finished; run that search first, without --adapt"
        raise InputError(f"--adapt={name}: {workdir / 'hqnas' / base} {rule}")
    begun = experiment.begin(given, workdir)
    moved = _moved(begun, share)
    limits, prices = _limits(moved, begun, given)
    warm = searching.warmed_up(workdir, begun, seed)
    search, state, _ = searching.of_budget(warm, share)
    old_start = pipeline.start_of(warm, state)
    likely = shared.subnet_of(begun.network.shared, state.logits)
    added = searching.added_losses(begun, search, state.params, likely)
    weights, state = _weights(workdir, given.adapt.after, search.folder, state)
    made_from = {
        "search": search.hash,
        "after": hash_of(weights),
        "adapt": given.adapt,
        "samples": given.hqnas.samples,
    }
    if given.adapt.frequencies and given.data.frequencies:
        made_from["images"] = "all"  # an older version took those of the search
    stage = Stage(workdir / "hqnas" / f"adapted-{name}", made_from)
    stage.begin()
    if given.adapt.shifted:
        first = learn.begin(state.params, adapt.movable(state.logits), tuple(limits))
        how = searching.how_of(moved, given.adapt.steps, given.hqnas.logit_lr)
        state = searching.learned(
            workdir, moved, stage, how, first, limits, seed, Phase.ADAPTATION, f"adapt {name}"
        )
    else:
        began, most = time.monotonic(), jnp.float32(given.hqnas.most_weight)
        logits = jax.block_until_ready(adapt.adapted(state.logits, added, limits, prices, most))
        logger.info("adapt %s: logits in %.1f s", name, time.monotonic() - began)
        # Draws of certain logits would all be the same subnet.
        state = state._replace(logits=adapt.movable(logits))
    # Scores belong to weights and images.
    same = not (given.adapt.shifted or given.adapt.after)
    scores = search.folder if same else stage.folder
    scored = searching.found(moved, stage, state, added, limits, seed, scores, prices)
    stage.finish()
    start = Start(state.params, {})
    network = pipeline.train(workdir, moved, stage, start, scored[0].subnet, seed)
    if given.hqnas.exports:
        folder = workdir / "export" / network.stage.folder.name
        export_stage.check([folder], begun.problem.task, given.export.max_drop)
    shown = 0.0 if prices else next(iter(moved.budgets))
    took = {"seconds": stage.seconds}
    more = _unadapted(workdir, begun, moved, search, old_start, seed)
    row = Row(seed, shown, stage, scored, network, "hqnas", took, search.folder.name, more)
    return write_results(workdir, moved, [row])


def _weights(
    workdir: pathlib.Path, after: str, search: pathlib.Path, state: State
) -> tuple[pathlib.Path, State]:
    """The folder and the state of the shared weights with which an adaptation begins."""
    if not after:
        return search, state
    folder = workdir / "hqnas" / f"adapted-{after}"
    if not (is_finished(folder) and (folder / "checkpoint").is_dir()):
        rule = "must be a finished adaptation to shifted images: others learn no weights"
        raise InputError(f"adapt.after={after!r}: {rule}")
    held = checkpoint.load_parts(folder / "checkpoint", {"params": state.params})
    return folder, state._replace(**held)


def _unadapted(
    workdir: pathlib.Path,
    begun: Begun,
    moved: Begun,
    search: Stage,
    start: pipeline.Start,
    seed: int,
) -> dict[str, float]:
    """The score of the old network on the shifted images, if they are shifted."""
    if not begun.config.adapt.shifted:
        return {}
    best = searching.read_subnets(search.folder / "subnets.json")[0].subnet
    old = pipeline.train(workdir, begun, search, start, best, seed)
    found = policies.accuracy(moved.problem, fit.training(begun.config), old)
    return {"unadapted_accuracy": found}


def _moved(begun: Begun, share: float) -> Begun:
    """The run on the other device, with the other cost and budget."""
    wanted, config = begun.config.adapt, copy.copy(begun.config)
    try:
        target = hardware.named(wanted.target or config.hardware.target)
        check_w_bits(target, "hqnas.bits", config.hqnas.bits)
        check_per_channel(target, "a network of HQNAS")
    except InputError as error:
        raise InputError(str(error).replace("hardware.target", "adapt.target")) from None
    deployed = begun.deployed if not wanted.target else begun.deployed._replace(target=target)
    config.hardware = dataclasses.replace(config.hardware, target=target.name)
    prices = [name for name, _ in wanted.prices]
    cost = prices[0] if prices else wanted.cost or config.hqnas.cost
    final = config.hqnas.final_steps if wanted.final_steps < 0 else wanted.final_steps
    config.hqnas = dataclasses.replace(
        config.hqnas, cost=cost, final_steps=final, neighbours=wanted.neighbours
    )
    costs = experiment.costs_of(deployed, begun.problem.space.ops, tuple(config.hqnas.bits))
    for name in (cost, *prices):
        if name not in costs:
            known = ", ".join(costs)
            raise InputError(
                f"adapt: target {target.name!r} does not know {name!r}; it knows {known}"
            )
    share = wanted.budget or share
    bounded = {share: share * budgets.teacher_cost(deployed, begun.problem, cost)}
    if not prices:
        experiment.check_budgets("adapt.budget", cost, costs[cost], bounded)
    begun = begun._replace(config=config, deployed=deployed, costs=costs, budgets=bounded)
    begun = begun._replace(limits={} if prices else _limits_on(begun))
    return _shifted(begun) if wanted.shifted else begun


def _limits_on(begun: Begun) -> dict[str, float]:
    """The limits of the search on the device, but for a cost that now has the budget."""
    found, own = {}, begun.config.hqnas
    for name, share in own.limits:
        if name not in begun.costs:
            target = begun.deployed.target.name
            raise InputError(f"hqnas.limits: target {target!r} does not know {name!r}")
        if name != own.cost:
            found[name] = share * budgets.teacher_cost(begun.deployed, begun.problem, name)
            experiment.check_budgets("hqnas.limits", name, begun.costs[name], {share: found[name]})
    return found


def _shifted(begun: Begun) -> Begun:
    """The run with shifted images."""
    wanted, problem, held_out = begun.config.adapt, begun.problem, begun.held_out
    if wanted.frequencies and begun.config.data.frequencies:
        problem, held_out = _with_all_classes(begun)

    def shifted(data: Dataset) -> Dataset:
        if wanted.frequencies:
            logger.info("adapt: reading the classes of %d images", len(data))
            data = Resampled(data, wanted.frequencies)
        return Corrupted(data, wanted.corruptions)

    problem = problem._replace(train=shifted(problem.train), val=shifted(problem.val))
    return begun._replace(problem=problem, held_out=shifted(held_out))


def _with_all_classes(begun: Begun) -> tuple[Problem, Part]:
    """The problem as without `data.frequencies`, and images that no search was trained on."""
    part, val = begun.problem.train, begun.problem.val
    assert isinstance(part, Part) and isinstance(part.data, Resampled)
    assert isinstance(val, Resampled)
    every, trained = part.data.data, set(part.data.places[: len(part)].tolist())
    first = len(every) - begun.config.hqnas.score_images
    held_out = [place for place in range(first, len(every)) if place not in trained]
    problem = begun.problem._replace(train=Part(every, range(first)), val=val.data)
    return problem, Part(every, held_out)


def _limits(moved: Begun, begun: Begun, given: Config) -> tuple[dict[str, Costs], dict[str, Any]]:
    """What the logits keep within budgets, and the prices of a preference."""
    if not given.adapt.prices:
        (budget,) = moved.budgets.values()
        limits = experiment.bounds(moved, budget)
        derive.check(begun.network.shared, limits)
        return limits, {}
    limits = {}
    for name, _ in given.adapt.prices:
        layers, fixed = moved.costs[name]
        unit = budgets.teacher_cost(moved.deployed, begun.problem, name)
        limits[name] = Costs(*(jnp.asarray(x, jnp.float32) for x in (layers, fixed, unit)))
    return limits, {name: jnp.float32(price) for name, price in given.adapt.prices}
