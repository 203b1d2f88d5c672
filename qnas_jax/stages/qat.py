"""Quantization-aware training of finished networks: the teacher and retrained subnets alike."""

import dataclasses
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import PyTree

from qnas_jax.errors import InputError
from qnas_jax.nn import policy
from qnas_jax.nn.trace import trace
from qnas_jax.run import recipes
from qnas_jax.run.stage import Stage
from qnas_jax.space import Bits, Choice
from qnas_jax.stages import evaluation, policies
from qnas_jax.stages.evaluation import Trained
from qnas_jax.stages.experiment import Problem, Purpose, key
from qnas_jax.stages.fit import Training, range_images
from qnas_jax.train import learned
from qnas_jax.train.distillation import Distillation

logger = logging.getLogger(__name__)

FOLDER = "qat"


def train(
    workdir: pathlib.Path,
    problem: Problem,
    how: Training,
    retrain: recipes.Retrain,
    trained: Trained,
) -> Trained:
    """Trains a network with the bitwidths that it has; scales and weights are learned.

    It begins as the network that quantization without training gives, and learns the labels and,
    if `retrain.distill` says so, what the same network says in float. The statistics of norms that
    a training leaves are those of few, augmented images; unless they were at rest, they are taken
    anew in the end.

    Args:
      workdir: The folder of the run.
      problem: Images and task.
      how: How the network was trained and evaluated.
      retrain: How it is trained now.
      trained: The network; its stage is finished.
    """
    aware = _aware(trained, stage_of(workdir, retrain, trained))
    if not aware.stage.done:
        logger.info("qat %s: begins", trained.stage.folder.name)
        floats, _ = evaluation.load_float(problem, how, trained)
        start = evaluation.load(problem, how, trained)
        _train(workdir, problem, how, retrain, aware, floats, *start)
    return aware


def finished(
    workdir: pathlib.Path, retrain: recipes.Retrain, trained: Sequence[Trained]
) -> list[Trained]:
    """Returns networks of a run as they are after this training, if the config wants one.

    Args:
      workdir: The folder of the run.
      retrain: How they were trained.
      trained: The networks before it.

    Raises:
      InputError: It was not finished, or made with other settings.
    """
    if not retrain.qat_steps:
        return list(trained)
    found = [_aware(one, stage_of(workdir, retrain, one)) for one in trained]
    for network in found:
        if not network.stage.done:
            raise InputError(f"{network.stage.folder}: is not finished; launch/main.py resumes it")
    return found


def stage_of(workdir: pathlib.Path, retrain: recipes.Retrain, trained: Trained) -> Stage:
    """Returns the stage of `train`.

    Raises:
      InputError: It was made with other settings.
    """
    mark = {"network": trained.stage.hash, "retrain": _recipe(retrain)}
    return Stage(workdir / FOLDER / trained.stage.folder.name, mark)


def _aware(trained: Trained, stage: Stage) -> Trained:
    """The network of that stage."""
    return trained._replace(stage=stage, weights=policies.NETWORK, learned=True)


def train_with_bits(
    workdir: pathlib.Path,
    problem: Problem,
    how: Training,
    retrain: recipes.Retrain,
    trained: Trained,
    bits: Bits,
) -> Trained:
    """Trains a network as `train` does, but with one choice of bitwidths in all searched blocks.

    It begins as `how.quantize` quantizes the network.

    Args:
      workdir: The folder of the run.
      problem: Images and task.
      how: How the network was trained, and how it is quantized at first.
      retrain: How it is trained now.
      trained: The network; its stage is finished.
      bits: Of weights and of activations.
    """
    blocks = tuple(tuple(Choice(c.op, *bits) for c in block) for block in trained.subnet)
    stage = stage_with_bits(workdir, how, retrain, trained, bits)
    aware = _aware(trained, stage)._replace(subnet=blocks)
    if not stage.done:
        floats, quant = evaluation.load_float(problem, how, trained)
        traced = trace(trained.model, problem.val[0][0].shape)
        quant = policy.with_policy(quant, {unit.name: bits for unit in traced.units if unit.site})
        start = evaluation.post_trained(problem, how, trained, floats, quant)
        _train(workdir, problem, how, retrain, aware, floats, *start)
    return aware


def stage_with_bits(
    workdir: pathlib.Path, how: Training, retrain: recipes.Retrain, trained: Trained, bits: Bits
) -> Stage:
    """Returns the stage of `train_with_bits`.

    Raises:
      InputError: It was made with other settings.
    """
    name = f"{trained.stage.folder.name}-w{bits[0]}a{bits[1]}"
    mark = {"network": trained.stage.hash, "retrain": _recipe(retrain), "quantize": how.quantize}
    return Stage(workdir / FOLDER / name, {**mark, "bits": list(bits)})


def _recipe(retrain: recipes.Retrain) -> dict[str, Any]:
    """Returns the settings of the training, for a mark."""
    return {
        "qat_steps": retrain.qat_steps,
        "qat_lr": retrain.qat_lr,
        "qat_scale_rate": retrain.qat_scale_rate,
        "qat_norm_steps": retrain.qat_norm_steps,
        "distill": [list(pair) for pair in retrain.distill],
    }


def _train(workdir, problem, how, retrain, aware: Trained, floats, variables, quant) -> None:
    """Trains from quantized variables and their policy; `floats` teach if they are to."""
    traced = trace(aware.model, problem.val[0][0].shape)
    start = {**variables, "params": learned.begin(traced, variables["params"], quant)}
    # Weights that decay would leave the grids, which do not.
    recipe = {**policies.recipe(retrain.qat_steps, retrain.qat_lr), "weight_decay": 0.0}
    distill = Distillation(aware.model, dict(retrain.distill))

    def quantize(params: PyTree, policy: PyTree) -> PyTree:
        return learned.quantize(traced, params, policy, retrain.qat_scale_rate)

    under = policies.UnderPolicy(
        quantize,
        quant,
        f"qat {aware.stage.folder.name}",
        key(how.seed, Purpose.QAT),
        norm_steps=(retrain.qat_norm_steps or None) if how.per_channel else 0,
        teacher=policies.Teacher(distill, floats) if retrain.distill else None,
        rate_setting="retrain.qat_lr",
    )
    if under.norm_steps is None:
        images = np.concatenate(list(range_images(problem.train, how)))
        under = under._replace(norm_images=images)
    how = how._replace(train=dataclasses.replace(how.train, **recipe))
    policies.train_policy(workdir, problem, how, aware, start, under)
