"""Whole networks under a policy: trained to the end, straight through the rounding."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from qnas_jax import space
from qnas_jax.export import fold, tie_free
from qnas_jax.ptq import norms
from qnas_jax.run.stage import Stage
from qnas_jax.stages import evaluation
from qnas_jax.stages.evaluation import Trained
from qnas_jax.stages.experiment import Problem
from qnas_jax.stages.fit import Training, batches, fit, optimizer_of, plan, rate_of
from qnas_jax.tasks.task import evaluate
from qnas_jax.train import checkpoint, learned, loop, supervised
from qnas_jax.train.imitation import Lesson

NETWORK = "network"  # the folder of the weights as they are quantized

Taught = tuple[Lesson, PyTree]  # and the variables of the teacher


def recipe(steps: int, lr: float) -> dict[str, Any]:
    """Returns the settings of `train` for the last training under a policy: SGD, linear."""
    rest = {"optimizer": "sgd", "warmup": 0, "power": 1.0, "clip": 0.0, "compute": "float32"}
    return {"steps": steps, "lr": lr, **rest}


def accuracy(problem: Problem, how: Training, trained: Trained) -> float:
    """Returns the score of a finished network on other validation images, as its file computes it.

    Args:
      problem: The images, and the task.
      how: How the network was trained.
      trained: It.
    """
    variables, quant = evaluation.load(problem, how, trained)
    shape, task = problem.val[0][0].shape, problem.task
    computed = evaluation.simulated(task, trained.model, variables, quant, shape)
    found, _ = evaluate({"quantized": computed}, problem.val, how.run.eval_batch, task)
    return found[f"{task.metric.name}_quantized"]


def train_policy(
    workdir: pathlib.Path,
    problem: Problem,
    how: Training,
    stage: Stage,
    model: nn.Module,
    start: PyTree,
    quantize: Callable[[PyTree, Any], PyTree],
    bits: Any,
    title: str,
    step_key: Key[Array, ""],
    norm_images: np.ndarray | None = None,
    subnet: space.Subnet = (),
    taught: Taught | None = None,
    norm_steps: int = 0,
    learned_scales: bool = False,
    rate_setting: str = "final_lr",
) -> Trained:
    """Trains a network under a policy, and evaluates what its file will compute.

    Args:
      workdir: The folder of the run.
      problem: Images and task.
      how: How the network is trained and evaluated; with 0 steps it is evaluated as it is.
      stage: Its stage; nothing is done if it is finished.
      model: The network.
      start: Its `params` and `batch_stats` at the beginning.
      quantize: (params, bits) -> `params` and `quant`, as `fold` takes them.
      bits: The policy.
      title: Name of the training in log lines.
      step_key: PRNG key of dropout.
      norm_images: Images uint8[n, h, w, 3] of which batch norms take their statistics at the end;
        None: they keep those of the training.
      subnet: Its ops, if it has any.
      taught: What the network learns besides the labels, and the variables that teach it.
      norm_steps: Steps in which norms use the batch; then they have their statistics. 0: all.
      learned_scales: Whether `quantize` has scales of weights, see `train/learned.py`.
      rate_setting: Name of the setting of the learning rate, for errors.
    """
    trained = Trained(stage, model, subnet, NETWORK, learned_scales)
    if stage.done:
        return trained
    stage.begin()
    given, optimizer = how.train, optimizer_of(how.train, how.train.lr)
    state = supervised.fresh_state(start, optimizer)
    if given.steps:
        lesson, first = (taught[0], (bits, taught[1])) if taught else (None, bits)
        live, frozen = (
            loop.several(
                supervised.policy_step(
                    model, problem.task.loss, optimizer, step_key, quantize, given.compute,
                    lesson, at_rest,
                ),
                first,
            )
            for at_rest in (False, True)
        )  # fmt: skip
        steps = _one_then_other(live, frozen, norm_steps) if norm_steps else live
        whole = loop.Watched(
            "the network", "loss", rate_of(given, given.lr), rate_setting, lambda state: state
        )
        planned = plan(stage, how, title, given.steps, [whole])
        make_batch = batches(problem.train, how, given.batch)
        state = fit(workdir, planned, steps, state, make_batch)
    read = dict(jax.jit(quantize)(state.params, bits))
    read["quant"] = learned.settled(read["quant"])
    found = {"params": read["params"], "batch_stats": state.batch_stats}
    state = supervised.fresh_state(
        found, optimizer
    )  # what was learned, without the steps of scales
    if norm_images is not None:
        settle = jax.jit(functools.partial(norms.settled, model))
        whole = {**read, "batch_stats": state.batch_stats}
        state = state._replace(batch_stats=settle(whole, norm_images))
    if not (stage.folder / NETWORK).is_dir():
        checkpoint.adopt(stage.folder / NETWORK, given.steps, state)
    variables, quant = state.variables(), read["quant"]
    shape = problem.val[0][0].shape
    network = fold.fold(model, variables, quant, shape, resize=problem.task.per_pixel)
    checkpoint.write_arrays(
        stage.folder / "quant.npz", tie_free.with_agreed_sums(network, jax.device_get(quant))
    )
    evaluation.finish(problem, how, trained, variables, quant)
    return trained


def _one_then_other(first: loop.Steps, second: loop.Steps, count: int) -> loop.Steps:
    """Steps that are the first ones up to a number, and the second ones from it on."""

    def steps(state, images, labels, numbers):
        return (first if int(numbers[0]) < count else second)(state, images, labels, numbers)

    return steps
