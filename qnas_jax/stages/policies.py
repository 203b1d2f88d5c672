"""Whole networks under a policy: trained to the end, straight through the rounding."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from qnas_jax.export import fold, tie_free
from qnas_jax.ptq import norms
from qnas_jax.run import parallel, processes, recipes
from qnas_jax.stages import evaluation
from qnas_jax.stages.evaluation import Trained
from qnas_jax.stages.experiment import Problem
from qnas_jax.stages.fit import Training, batches, fit, optimizer_of, plan, rate_of
from qnas_jax.tasks.task import evaluate
from qnas_jax.train import checkpoint, learned, loop, mesh, supervised
from qnas_jax.train.distillation import Distillation

NETWORK = "network"  # the folder of the weights as they are quantized


class Teacher(NamedTuple):
    """What a network learns from another one.

    Attributes:
      distill: The other network, and the weights of its outputs in the loss.
      variables: Its `params` and `batch_stats`.
    """

    distill: Distillation
    variables: PyTree


def taught_by(how: recipes.Retrain, problem: Problem, variables: PyTree) -> Teacher | None:
    """Returns what retrained networks learn from the teacher; None if the config wants nothing.

    Args:
      how: What is learned.
      problem: Has the teacher.
      variables: The teacher's.
    """
    if not how.distill:
        return None
    own = {kind: variables[kind] for kind in ("params", "batch_stats")}
    return Teacher(Distillation(problem.teacher, dict(how.distill)), own)


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


class UnderPolicy(NamedTuple):
    """How a network is trained under a policy.

    Attributes:
      quantize: (params, policy) -> `params` and `quant`, as `fold` takes them.
      policy: The policy.
      title: Name of the training in log lines.
      key: PRNG key of dropout.
      norm_images: Images uint8[n, h, w, 3] of which batch norms take their statistics at the end;
        None: they keep those of the training.
      norm_steps: Steps in which norms use the batch; then they are at rest. None: all steps.
      teacher: What the network learns besides the labels.
      rate_setting: Name of the setting of the learning rate, for errors.
    """

    quantize: Callable[[PyTree, Any], PyTree]
    policy: Any
    title: str
    key: Key[Array, ""]
    norm_images: np.ndarray | None = None
    norm_steps: int | None = None
    teacher: Teacher | None = None
    rate_setting: str = "final_lr"


def train_policy(
    workdir: pathlib.Path,
    problem: Problem,
    how: Training,
    trained: Trained,
    start: PyTree,
    under: UnderPolicy,
) -> None:
    """Trains a network under a policy, and evaluates what its file will compute.

    Args:
      workdir: The folder of the run.
      problem: Images and task.
      how: How the network is trained and evaluated; with 0 steps it is evaluated as it is.
      trained: The network; nothing is done if its stage is finished.
      start: Its `params` and `batch_stats` at the beginning.
      under: The policy, and what it does.
    """
    stage, model = trained.stage, trained.model
    if stage.done:
        return
    stage.begin()
    state = _fitted(workdir, problem, how, trained, start, under)
    read = jax.jit(under.quantize)(state.params, under.policy)
    quant = learned.with_fixed_ranges(read["quant"])
    variables = {"params": read["params"], "batch_stats": state.batch_stats}
    if under.norm_images is not None:
        settle = jax.jit(functools.partial(norms.settled, model))
        statistics = settle({**variables, "quant": quant}, under.norm_images)
        variables = {**variables, "batch_stats": statistics}
    shape = problem.val[0][0].shape
    with processes.first_goes_first("network"):
        if parallel.is_first() and not (stage.folder / NETWORK).is_dir():
            checkpoint.adopt(stage.folder / NETWORK, how.train.steps, variables)
        if parallel.is_first():
            network = fold.fold(model, variables, quant, shape, resize=problem.task.per_pixel)
            agreed = tie_free.with_agreed_sums(network, jax.device_get(quant))
            checkpoint.write_arrays(stage.folder / "quant.npz", agreed)
    evaluation.finish(problem, how, trained, variables, quant)


def _fitted(workdir, problem, how, trained, start, under: UnderPolicy) -> supervised.TrainState:
    """The state after all steps."""
    given, optimizer = how.train, optimizer_of(how.train, how.train.lr)
    state = supervised.fresh_state(start, optimizer)
    if not given.steps:
        return state
    distill, constant = None, under.policy
    if under.teacher:
        distill, constant = under.teacher.distill, (under.policy, under.teacher.variables)

    def steps_of(frozen: bool) -> loop.Steps:
        step = supervised.policy_step(
            trained.model, problem.task.loss, optimizer, under.key, under.quantize, given.compute,
            distill, frozen, given.parts,
        )  # fmt: skip
        return loop.several(step, constant)

    steps = steps_of(frozen=False)
    if under.norm_steps is not None:
        steps = _one_then_other(steps, steps_of(frozen=True), under.norm_steps)
    rate = rate_of(given, given.lr)
    whole = loop.Watched("the network", "loss", rate, under.rate_setting, lambda state: state)
    planned = plan(trained.stage, how, under.title, given.steps, [whole])
    make_batch = batches(problem.train, how, given.batch)
    return fit(workdir, planned, steps, state, make_batch, mesh.layout(given.batch))


def _one_then_other(first: loop.Steps, second: loop.Steps, count: int) -> loop.Steps:
    """Steps that are the first ones up to a number, and the second ones from it on."""

    def steps(state, images, labels, numbers):
        return (first if int(numbers[0]) < count else second)(state, images, labels, numbers)

    return steps
