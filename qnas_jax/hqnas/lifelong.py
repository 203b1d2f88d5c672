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

from qnas_jax import hardware, space
from qnas_jax.errors import InputError
from qnas_jax.hqnas import adapt, experiment, pipeline, shared
from qnas_jax.hqnas.config import Config
from qnas_jax.hqnas.experiment import Begun
from qnas_jax.hqnas.relax import Costs
from qnas_jax.hqnas.results import Row, write_results
from qnas_jax.run import artefacts
from qnas_jax.run.stage import Stage, is_finished, read_json

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
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise InputError(f"--adapt={name!r}: must be a name of letters, digits, '.', '_' and '-'")
    given.check()
    share = given.adapt.of or given.hqnas.budgets[0]
    seed = given.seed if given.adapt.seed < 0 else given.adapt.seed
    base = pipeline.folder_name(given, share, seed)
    if not is_finished(workdir / "hqnas" / base):
        rule = "is not finished; run the search first, with the same command without --adapt"
        raise InputError(f"--adapt={name}: {workdir / 'hqnas' / base} {rule}")
    begun = experiment.begin(given, workdir)
    moved = _moved(begun, share)
    warm_stage, start = pipeline.warmed_up(workdir, begun, seed)
    search, state = pipeline.searched(workdir, begun, warm_stage, start, seed, share)
    made_from = {"search": search.hash, "adapt": given.adapt, "samples": given.hqnas.samples}
    stage = Stage(workdir / "hqnas" / f"adapted-{name}", made_from)
    stage.begin()
    began = time.monotonic()
    described = begun.network.shared
    best = read_json(search.folder / "subnets.json")["subnets"][0][0]
    added = adapt.sensitivities(
        pipeline.scores(begun, search, state.params),
        shared.codes_of(described, space.parse_subnet(best)),
        (len(described.ops), len(described.bits), len(described.bits)),
    )
    cached, began = time.monotonic() - began, time.monotonic()
    limits, prices = _limits(moved, begun, given)
    most = jnp.float32(given.hqnas.most_weight)
    logits = jax.block_until_ready(adapt.adapted(state.logits, added, limits, prices, most))
    learned = time.monotonic() - began
    logger.info("adapt %s: scores of choices in %.1f s, logits in %.1f s", name, cached, learned)
    timed = stage.folder / "seconds.json"
    if not timed.exists():
        found = {"cache_seconds": round(cached, 2), "logit_seconds": round(learned, 2)}
        artefacts.write_json(timed, found)
    cost = limits[moved.config.hqnas.cost]
    if prices:  # a preference bounds nothing
        cost = cost._replace(budget=jnp.float32(jnp.inf))
    scored = pipeline.found(moved, stage, state._replace(logits=logits), cost, seed, search)
    network = pipeline.train(workdir, moved, stage, state.params, scored[0].subnet, seed)
    stage.finish()
    row = Row(
        seed, 0.0 if prices else next(iter(moved.budgets)), stage, scored, network,
        adapted_from=base, seconds=read_json(timed),
    )  # fmt: skip
    return write_results(workdir, moved, [row])


def _moved(begun: Begun, share: float) -> Begun:
    """The run on the other device, with the other cost and budget."""
    wanted, config = begun.config.adapt, copy.copy(begun.config)
    target = hardware.named(wanted.target or config.hardware.target)
    deployed = begun.deployed if not wanted.target else begun.deployed._replace(target=target)
    config.hardware = dataclasses.replace(config.hardware, target=target.name)
    prices = [name for name, _ in wanted.prices]
    cost = prices[0] if prices else wanted.cost or config.hqnas.cost
    config.hqnas = dataclasses.replace(config.hqnas, cost=cost)
    costs = experiment.costs_of(deployed, begun.problem.space.ops, tuple(config.hqnas.bits))
    for name in (cost, *prices):
        if name not in costs:
            known = ", ".join(costs)
            raise InputError(
                f"adapt: target {target.name!r} does not know {name!r}; it knows {known}"
            )
    share = wanted.budget or share
    budgets = {share: share * experiment.teacher_cost(deployed, begun.problem, cost)}
    if not prices:
        experiment.check_budgets("adapt.budget", cost, costs[cost], budgets)
    return begun._replace(config=config, deployed=deployed, costs=costs, budgets=budgets)


def _limits(moved: Begun, begun: Begun, given: Config) -> tuple[dict[str, Costs], dict[str, Any]]:
    """What the logits keep within budgets, and the prices of a preference."""
    if not given.adapt.prices:
        (budget,) = moved.budgets.values()
        return experiment.bounds(moved, budget), {}
    limits = {}
    for name, _ in given.adapt.prices:
        layers, fixed = moved.costs[name]
        unit = experiment.teacher_cost(moved.deployed, begun.problem, name)
        limits[name] = Costs(*(jnp.asarray(x, jnp.float32) for x in (layers, fixed, unit)))
    return limits, {name: jnp.float32(price) for name, price in given.adapt.prices}
