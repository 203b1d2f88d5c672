"""Seconds and memory of a step of HQNAS, beside a training step of the widest subnet in float.

    python launch/bench/main.py hqnas --config configs/hqnas_cifar10.py

Images are rendered, of the size and the batch of the config, so that no data set is needed; a
classifier then has 12 classes. The fastest of several groups of steps counts, without compilation.
`hours` are those of all steps of the config's searches at that speed: warm-up and budgets of all
seeds, without the teacher, the scores of the derivation and the training of the found networks.
Bytes are XLA's own count of what a step needs besides its arguments; on a GPU they also hold what
cuDNN asks for.
"""

import argparse
import dataclasses
import functools
import runpy
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qnas_jax.errors import InputError
from qnas_jax.hqnas import config, experiment, learn, relax, shared
from qnas_jax.hqnas.learn import Network
from qnas_jax.nn import init
from qnas_jax.nn.trace import trace
from qnas_jax.run import checks, paths
from qnas_jax.stages import fit
from qnas_jax.stages.experiment import prepare
from qnas_jax.train import loop, optimizers, supervised

CONFIG = "configs/hqnas_objects.py"
LR = 1e-3  # of the step in float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subject."""
    parser.add_argument("--config", default=CONFIG, help="the config file of the search")
    parser.add_argument("--relaxation", choices=sorted(relax.RELAXATIONS), default="sampled")
    parser.add_argument("--groups", type=int, default=5, help="of steps that are timed")
    parser.add_argument("--steps", type=int, default=10, help="of a group")


class Case(NamedTuple):
    """A search before its first step.

    Attributes:
      network: The widest network.
      bounds: The cost that is bounded.
      images: uint8[batch, h, w, 3].
      labels: Their classes, or those of their pixels.
    """

    network: Network
    bounds: relax.Bounds
    images: jax.Array
    labels: jax.Array


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures both steps; prints a table; returns the figures."""
    for name in ("groups", "steps"):
        checks.at_least(f"--{name}", getattr(arguments, name), 1)
    file = str(paths.named("--config", arguments.config))
    given = runpy.run_path(file)["get_config"]()
    if not isinstance(given, config.Config):
        raise InputError(f"--config={arguments.config}: must be a config of HQNAS")
    own, case = given.hqnas, _prepared(given)
    measured = {
        "step": _timed(*_search(case, own, arguments.relaxation), case, arguments),
        "subnet": _timed(*_in_float(case), case, arguments),
    }
    total = own.seeds * (own.warmup_steps + len(own.budgets) * own.steps)
    figures = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "config": arguments.config,
        "batch": own.batch,
        "relaxation": arguments.relaxation,
        **{
            f"{name}_{key}": value
            for name, found in measured.items()
            for key, value in found.items()
        },
        "steps": total,
        "hours": total * measured["step"]["s"] / 3600,
    }
    for name, value in figures.items():
        print(f"{name:20s} {value:.4g}" if isinstance(value, float) else f"{name:20s} {value}")
    return figures


def _prepared(given: config.Config) -> Case:
    """The widest network with random weights, and rendered images."""
    own, crop = given.hqnas, given.train.crop
    given.teacher = dataclasses.replace(given.teacher, checkpoint="")
    least = own.score_images + max(own.batch, own.norm_images, given.quantize.images)
    source = "streets" if given.data.source in ("streets", "cityscapes") else "objects"
    given.data = dataclasses.replace(
        given.data,
        source=source,
        root="",
        name="",
        train_images=least,
        val_images=1,
        corruptions=(),
        frequencies=(),
    )
    given, problem, deployed = prepare(given)
    batch = fit.batches(problem.train, fit.training(given), own.batch)(0)
    model = problem.student(shared.widest(problem.space))
    traced = trace(model, problem.val[0][0].shape)
    described = shared.describe(traced, problem.space, tuple(own.bits))
    fresh = init.initialize(model, jax.random.key(0), (1, *crop, 3))
    network = Network(model, described, fresh, problem.task.loss)
    layers, fixed = experiment.costs_of(deployed, problem.space.ops, own.bits)[own.cost]
    most = fixed + float(layers.max((1, 2, 3)).sum())
    costs = relax.Costs(*(jnp.asarray(x, jnp.float32) for x in (layers, fixed, most)))
    return Case(network, {own.cost: costs}, jnp.asarray(batch.images), jnp.asarray(batch.labels))


def _search(case: Case, own: config.Hqnas, relaxation: str) -> tuple[Callable, Any]:
    """Steps of the search, and their first state."""
    how = learn.How(
        own.steps, own.lr, own.logit_lr, own.temperature, own.rate, own.most_weight, own.damping
    )
    how = jax.tree.map(jnp.asarray, how)
    step = learn.step(case.network, relax.RELAXATIONS[relaxation], own.bilevel)
    logits = relax.first(case.network.shared, own.first_bits)
    state = learn.begin(case.network.variables["params"], logits, tuple(case.bounds))
    return functools.partial(loop.program(step), (how, case.bounds, jax.random.key(1))), state


def _in_float(case: Case) -> tuple[Callable, Any]:
    """Steps that train the widest subnet in float, and their first state."""
    optimizer = optimizers.sgd(LR, 1000, 0.9, 0.9, 0.0)
    network = case.network
    step = supervised.train_step(network.model, network.loss, optimizer, jax.random.key(1))
    return functools.partial(loop.program(step), ()), supervised.fresh_state(
        network.variables, optimizer
    )


def _timed(
    steps: Callable, state: Any, case: Case, arguments: argparse.Namespace
) -> dict[str, float]:
    """Seconds of a step and of the compilation, and the bytes that a step needs for itself."""
    state = jax.tree.map(jnp.copy, state)  # steps reuse the memory of theirs
    batch = case.images[None], case.labels[None]
    lowered = steps.func.lower(*steps.args, state, *batch, jnp.arange(1))
    begin = time.perf_counter()
    compiled = lowered.compile()
    found = {"compile_s": time.perf_counter() - begin}

    def one(state, number):
        return compiled(*steps.args, state, *batch, jnp.arange(number, number + 1))[0]

    found["bytes"] = float(compiled.memory_analysis().temp_size_in_bytes)
    state = jax.block_until_ready(one(state, 0))
    seconds = []
    for group in range(arguments.groups):
        begin = time.perf_counter()
        for number in range(arguments.steps):
            state = one(state, 1 + group * arguments.steps + number)
        jax.block_until_ready(state)
        seconds.append((time.perf_counter() - begin) / arguments.steps)
    return {"s": min(seconds), **found}
