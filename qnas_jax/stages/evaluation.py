"""Trained networks: evaluated in float and quantized, and read again."""

import logging
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import PyTree

from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.export import fold, simulate, tie_free
from qnas_jax.hardware import size
from qnas_jax.nn import init, policy
from qnas_jax.nn.conv import W_RANGE
from qnas_jax.nn.trace import Shape, convs, trace
from qnas_jax.ptq import per_tensor
from qnas_jax.run import artefacts, parallel, processes
from qnas_jax.run.stage import Stage
from qnas_jax.stages import post_training
from qnas_jax.stages.experiment import Problem, Purpose, key
from qnas_jax.stages.fit import Training, range_images
from qnas_jax.tasks.task import Classify, Task, evaluate
from qnas_jax.train import checkpoint, learned, supervised

logger = logging.getLogger(__name__)


CHECKPOINT = "checkpoint"  # the folder of the weights of a float training


class Trained(NamedTuple):
    """A network that a stage trained and evaluated.

    Attributes:
      stage: The stage.
      model: The network.
      subnet: Its ops and bitwidths.
      weights: The folder of its checkpoint, within that of the stage.
      learned: Whether its policy has scales of weights, see `train/learned.py`.
    """

    stage: Stage
    model: nn.Module
    subnet: space.Subnet
    weights: str = CHECKPOINT
    learned: bool = False


def finish(problem: Problem, how: Training, trained: Trained, variables, quant) -> None:
    """Evaluates a network, writes `metrics.json` and some predictions, and finishes its stage."""
    stage, model, subnet = trained.stage, trained.model, trained.subnet
    if stage.done:
        return
    with processes.first_goes_first("quantized"):
        coded, quant = _quantized(problem, how, trained, variables, quant)
    shape, task = problem.val[0][0].shape, problem.task
    sources = {
        "fp32": in_float(task, model, variables),
        # What the files compute; with fake quantization, biases would not be rounded.
        "quantized": simulated(task, model, coded, quant, shape),
    }
    found, samples = evaluate(sources, problem.val, how.run.eval_batch, task)
    sizes = network_sizes(model, quant, shape)
    if parallel.is_first():
        with artefacts.writing(stage.folder / "samples.npz") as file:
            np.savez_compressed(file, allow_pickle=False, **samples)
        described = {"subnet": space.format_subnet(subnet), **found, **sizes}
        artefacts.write_json(stage.folder / "metrics.json", described)
    stage.finish()
    processes.wait_for_all("evaluated")
    logger.info(
        "%s: %s %.2f %% in float, %.2f %% quantized, %.1f kB",
        stage.folder.name,  # "teacher", or the subnet
        task.metric.title,
        found[f"{task.metric.name}_fp32"],
        found[f"{task.metric.name}_quantized"],
        sizes["size_bytes"] / 1e3,
    )


def in_float(task: Task, model: nn.Module, variables: PyTree) -> Classify:
    """Returns a function images -> classes by rank, of a network in float."""
    return parallel.on_each_device(supervised.predictor(model, task.predict), variables)


def simulated(task: Task, model: nn.Module, variables, quant, shape: Shape) -> Classify:
    """Returns a function images -> classes by rank, as the integers of a network's file do."""
    logits = simulate.logits(fold.fold(model, variables, quant, shape, resize=task.per_pixel))
    predict = jax.jit(task.predict, static_argnums=1)
    return lambda images: predict(logits(images), shape[:2])


def network_sizes(model: nn.Module, quant: PyTree, image_shape: Shape) -> dict[str, int]:
    """Returns the bytes of a network and of its encoder, quantized and in float, and its MACs."""
    traced, bits = trace(model, image_shape), policy.w_bits(quant)
    found = traced.convs
    by_conv = {
        conv.name: int(
            size.conv_bytes(conv, bits[conv.name], W_RANGE not in policy.at(quant, conv.name))
        )
        for conv in found
    }
    encoder = sum(by_conv[conv.name] for conv in convs(traced.encoder))
    return {
        "size_bytes": sum(by_conv.values()),
        "encoder_size_bytes": encoder,
        "float_size_bytes": size.float_bytes(found),
        "macs": sum(conv.macs for conv in found),
    }


def _quantized(
    problem: Problem, how: Training, trained: Trained, variables, quant
) -> tuple[PyTree, PyTree]:
    """Returns the variables and the policy of the quantized network.

    They are found once, and kept in `quantized.npz` (if a method changes the variables) and
    `quant.npz`. A network that was trained under its policy has its own `quant.npz` already.
    """
    folder = trained.stage.folder
    changed, file = folder / "quantized.npz", folder / "quant.npz"
    changes = trained.weights == CHECKPOINT and post_training.changes_weights(how.quantize)
    if trained.learned and not file.exists():
        raise InputError(f"{file}: is missing; put it back, or delete {folder}")
    is_missing = not file.exists() or (changes and not changed.exists())
    if is_missing and parallel.is_first():
        coded, found = post_trained(problem, how, trained, variables, quant)
        if changes:
            checkpoint.write_arrays(changed, coded)
        checkpoint.write_arrays(file, found)
    coded = checkpoint.read_arrays(changed, variables) if changes else variables
    if not how.per_channel:
        traced = trace(trained.model, problem.val[0][0].shape)
        quant = per_tensor.template(traced, variables["params"], quant)
    return coded, checkpoint.read_arrays(file, quant)


def post_trained(
    problem: Problem, how: Training, trained: Trained, variables, quant
) -> tuple[PyTree, PyTree]:
    """Returns the variables and the policy of a network, quantized as `how.quantize` says."""
    shape, images = problem.val[0][0].shape, list(range_images(problem.train, how))
    quant = policy.with_most_w_bits(quant, how.most_w_bits)
    coded, found = post_training.quantized(
        trained.model, trace(trained.model, shape), variables, quant, images, how.quantize,
        key(how.seed, Purpose.ROUNDING), how.per_channel,
    )  # fmt: skip
    network = fold.fold(trained.model, coded, found, shape, resize=problem.task.per_pixel)
    return coded, tie_free.with_agreed_sums(network, found)


def load(problem: Problem, how: Training, trained: Trained) -> tuple[PyTree, PyTree]:
    """Returns the variables and the policy of a quantized network whose stage is finished."""
    return _quantized(problem, how, trained, *load_float(problem, how, trained))


def load_float(problem: Problem, how: Training, trained: Trained) -> tuple[PyTree, PyTree]:
    """Returns the variables of a network whose stage is finished, and its policy without ranges."""
    random = key(how.seed, Purpose.TEACHER_INIT)  # overwritten by the checkpoint
    fresh = init.initialize(trained.model, random, (1, *how.train.crop, 3))
    like = {kind: fresh[kind] for kind in ("params", "batch_stats")}
    variables = checkpoint.load_parts(trained.stage.folder / trained.weights, like)
    quant = with_bits(trained.model, fresh["quant"], trained.subnet, problem)
    if trained.learned:
        traced = trace(trained.model, problem.val[0][0].shape)
        quant = learned.template(traced, variables["params"], quant)
    return variables, quant


def with_bits(model: nn.Module, quant: PyTree, subnet: space.Subnet, problem: Problem) -> PyTree:
    """The policy of a subnet."""
    return policy.with_bits(quant, trace(model, problem.val[0][0].shape), subnet)
