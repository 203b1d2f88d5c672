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
from qnas_jax.train.imitation import Lesson

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
    stage = _stage(workdir, retrain, trained)
    if stage.done:
        return _of(trained, stage)
    logger.info("qat %s: begins", trained.stage.folder.name)
    floats, _ = evaluation.load_float(problem, how, trained)
    start = evaluation.load(problem, how, trained)
    return _trained(workdir, problem, how, retrain, trained, stage, floats, *start)


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
    pairs = zip(trained, stages(workdir, retrain, trained), strict=True)
    found = [_of(one, stage) for one, stage in pairs]
    for network in found:
        if not network.stage.done:
            raise InputError(f"{network.stage.folder}: is not finished; launch/main.py resumes it")
    return found


def stages(
    workdir: pathlib.Path, retrain: recipes.Retrain, trained: Sequence[Trained]
) -> list[Stage]:
    """Returns the stages of some networks, to refuse other settings before anything takes long.

    Raises:
      InputError: One was made with other settings.
    """
    return [_stage(workdir, retrain, one) for one in trained]


def _stage(workdir: pathlib.Path, retrain: recipes.Retrain, trained: Trained) -> Stage:
    mark = {"network": trained.stage.hash, "retrain": _recipe(retrain)}
    return Stage(workdir / FOLDER / trained.stage.folder.name, mark)


def _of(trained: Trained, stage: Stage) -> Trained:
    return trained._replace(stage=stage, weights=policies.NETWORK, learned=True)


def train_at(
    workdir: pathlib.Path,
    problem: Problem,
    how: Training,
    retrain: recipes.Retrain,
    trained: Trained,
    bits: Bits,
) -> Trained:
    """Trains a network as `train` does, but with one choice of bitwidths in all searched blocks.

    It begins as `how.quantize` quantizes the network. It can be scored, but not loaded.

    Args:
      workdir: The folder of the run.
      problem: Images and task.
      how: How the network was trained, and how it is quantized at first.
      retrain: How it is trained now.
      trained: The network; its stage is finished.
      bits: Of weights and of activations.
    """
    stage = stage_at(workdir, how, retrain, trained, bits)
    if stage.done:
        return _of(trained, stage)
    floats, quant = evaluation.load_float(problem, how, trained)
    traced = trace(trained.model, problem.val[0][0].shape)
    quant = policy.with_policy(quant, {unit.name: bits for unit in traced.units if unit.site})
    start = evaluation.post_trained(problem, how, trained, floats, quant)
    blocks = (tuple(Choice(choice.op, *bits) for choice in block) for block in trained.subnet)
    trained = trained._replace(subnet=tuple(blocks))
    return _trained(workdir, problem, how, retrain, trained, stage, floats, *start)


def stage_at(
    workdir: pathlib.Path, how: Training, retrain: recipes.Retrain, trained: Trained, bits: Bits
) -> Stage:
    """Returns the stage of `train_at`.

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


def _trained(workdir, problem, how, retrain, trained, stage, floats, variables, quant) -> Trained:
    """Trains from quantized variables and their policy; `floats` teach if they are to."""
    traced = trace(trained.model, problem.val[0][0].shape)
    start = {**variables, "params": learned.begin(traced, variables["params"], quant)}
    # Weights that decay would leave the grids, which do not.
    own = {**policies.recipe(retrain.qat_steps, retrain.qat_lr), "weight_decay": 0.0}
    images = list(range_images(problem.train, how))

    def quantize(params: PyTree, policy: PyTree) -> PyTree:
        return learned.quantize(traced, params, policy, retrain.qat_scale_rate)

    return policies.train_policy(
        workdir, problem, how._replace(train=dataclasses.replace(how.train, **own)), stage,
        trained.model, start, quantize, quant, f"qat {stage.folder.name}",
        key(how.seed, Purpose.QAT),
        norm_images=None if retrain.qat_norm_steps else np.concatenate(images),
        subnet=trained.subnet,
        taught=(Lesson(trained.model, dict(retrain.distill)), floats) if retrain.distill else None,
        norm_steps=retrain.qat_norm_steps,
        learned_scales=True,
        rate_setting="retrain.qat_lr",
    )  # fmt: skip
