"""Quantization-aware training of finished networks: the teacher and retrained subnets alike."""

import dataclasses
import pathlib

from jaxtyping import PyTree

from qnas_jax.nn.trace import trace
from qnas_jax.run import recipes
from qnas_jax.run.stage import Stage
from qnas_jax.stages import evaluation, policies
from qnas_jax.stages.evaluation import Trained
from qnas_jax.stages.experiment import Problem, Purpose, key
from qnas_jax.stages.fit import Training
from qnas_jax.train import learned
from qnas_jax.train.imitation import Lesson

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
    if `retrain.distill` says so, what the same network says in float.

    Args:
      workdir: The folder of the run.
      problem: Images and task.
      how: How the network was trained and evaluated.
      retrain: How it is trained now.
      trained: The network; its stage is finished.
    """
    settings = {
        "qat_steps": retrain.qat_steps,
        "qat_lr": retrain.qat_lr,
        "qat_norm_steps": retrain.qat_norm_steps,
        "distill": [list(pair) for pair in retrain.distill],
    }
    name = trained.stage.folder.name
    stage = Stage(workdir / FOLDER / name, {"network": trained.stage.hash, "retrain": settings})
    if stage.done:
        return trained._replace(stage=stage, weights=policies.NETWORK, learned=True)
    floats, _ = evaluation.load_float(problem, how, trained)
    variables, quant = evaluation.load(problem, how, trained)
    traced = trace(trained.model, problem.val[0][0].shape)
    start = {**variables, "params": learned.begin(traced, variables["params"], quant)}
    own = policies.recipe(retrain.qat_steps, retrain.qat_lr)

    def quantize(params: PyTree, policy: PyTree) -> PyTree:
        return learned.quantize(traced, params, policy)

    return policies.train_policy(
        workdir, problem, how._replace(train=dataclasses.replace(how.train, **own)), stage,
        trained.model, start, quantize, quant, f"qat {name}", key(how.seed, Purpose.QAT),
        subnet=trained.subnet,
        taught=(Lesson(trained.model, dict(retrain.distill)), floats) if retrain.distill else None,
        norm_steps=retrain.qat_norm_steps,
        learned_scales=True,
    )  # fmt: skip
