"""What all stages that train have in common."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import optax

from qnas_jax import hardware
from qnas_jax.data.batching import (
    Augmentation,
    Batch,
    Dataset,
    central_crops,
    training_batch,
)
from qnas_jax.errors import InputError
from qnas_jax.run import config, parallel, recipes
from qnas_jax.run.log import Metrics
from qnas_jax.run.stage import Stage
from qnas_jax.space import MOST_BITS
from qnas_jax.train import loop, optimizers

State = TypeVar("State")


class Training(NamedTuple):
    """How the networks of a run are trained and evaluated.

    Weights have at most `most_w_bits`, and a scale for each output channel if `per_channel`, as
    the target has it.
    """

    seed: int
    data: config.Data
    train: config.Train
    quantize: recipes.Quantize
    run: config.Run
    most_w_bits: int = MOST_BITS
    per_channel: bool = True


def training(given: config.Config) -> Training:
    """Returns how a config trains whole networks."""
    target = hardware.named(given.hardware.target)
    of_target = target.most_w_bits, target.per_channel
    return Training(given.seed, given.data, given.train, given.quantize, given.run, *of_target)


def retraining(how: Training, retrain: recipes.Retrain) -> Training:
    """Returns how networks are trained again, where `how` trains the first time."""
    own = {"steps": retrain.steps or how.train.steps, "lr": retrain.lr or how.train.lr}
    return how._replace(train=dataclasses.replace(how.train, **own))


@runtime_checkable  # for the checks of annotated types in the tests
class Recipe(Protocol):
    """Settings of an optimizer, see `config.Train`."""

    steps: int
    optimizer: str
    momentum: float
    power: float
    warmup: int
    weight_decay: float
    clip: float


def optimizer_of(how: Recipe, lr: float) -> optax.GradientTransformation:
    """Returns the optimizer of a training with the highest learning rate `lr`."""
    if how.optimizer == "adamw":
        return optimizers.adamw(lr, how.steps, how.warmup, how.weight_decay, how.clip)
    return optimizers.sgd(lr, how.steps, how.power, how.momentum, how.weight_decay, how.clip)


def rate_of(how: Recipe, lr: float) -> optax.Schedule:
    """Returns the schedule of `optimizer_of`."""
    if how.optimizer == "adamw":
        return optimizers.cosine(lr, how.steps, how.warmup)
    return optimizers.polynomial(lr, how.steps, how.power)


def plan(
    stage: Stage, how: Training, title: str, steps: int, watched: Sequence[loop.Watched]
) -> loop.Plan:
    """Returns the plan of a stage's training, whose checkpoints are in the stage's folder.

    Raises:
      InputError: The stage is finished, but its last state is missing. Another training would
        not give the state that later stages were made from.
    """
    folder = stage.folder / "checkpoint"
    if stage.done and not (folder / str(steps)).is_dir():
        raise InputError(
            f"{folder / str(steps)}: is missing; put it back, "
            f"or delete {stage.folder} and all that was made from it"
        )
    return loop.Plan(
        title,
        steps,
        folder,
        watched,
        save_every=how.run.save_every,
        log_every=how.run.log_every,
        per_dispatch=how.run.per_dispatch,
        threads=how.data.threads,
    )


def batches(
    images: Dataset, how: Training, batch: int, share: Sequence[int] | None = None
) -> Callable[[int], Batch]:
    """Returns a function step -> this process's share of the step's augmented batch.

    Args:
      images: The training images.
      how: Augmentation and seed.
      batch: Images of a step, of all processes.
      share: Their places that this process reads; by default one of equal shares.
    """
    augmentation = Augmentation(how.train.crop, how.train.scale, how.train.flip)
    share = parallel.share(batch) if share is None else share
    return lambda step: training_batch(images, how.seed, step, batch, augmentation, share)


def range_images(images: Dataset, how: Training) -> Iterator[np.ndarray]:
    """Yields the images on which ranges are found, uint8[n, h, w, 3], cropped as for training."""
    count, per_pass = how.quantize.images, how.quantize.images_per_pass
    for start in range(0, count, per_pass):
        yield central_crops(images, range(start, min(start + per_pass, count)), how.train.crop)


def fit(
    workdir: pathlib.Path,
    planned: loop.Plan,
    steps: loop.Steps,
    state: State,
    make_batch: Callable[[int], Batch],
    layout: loop.Layout = loop.AS_SAVED,
) -> State:
    """Runs a stage's training steps and records its metrics; see `loop.fit`.

    With `mesh.layout(batch)`, all devices of all processes share the batch.
    """
    name = planned.folder.parent.relative_to(workdir).as_posix()
    with Metrics(workdir, name, parallel.is_first()) as metrics:
        return loop.fit(steps, state, make_batch, planned, metrics, layout)
