"""Scores policies: the accuracy of the network under each, without or after a short training."""

import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key, PyTree

from qnas_jax.data.batching import Batch, Dataset, prefetch, stacked
from qnas_jax.nn.units import pixels
from qnas_jax.ptq import norms
from qnas_jax.run import artefacts, parallel
from qnas_jax.run.log import Progress
from qnas_jax.run.stage import reading
from qnas_jax.stages.quantizers import Quantize
from qnas_jax.tasks.task import Task, ranked
from qnas_jax.train import supervised
from qnas_jax.train.supervised import TrainState

SAVE_SECONDS = 20.0  # between two savings of what was evaluated
WORTH_SECONDS = 1.0  # of work that is saved at once
MANY = 40  # policies asked for at once, from which on lines of progress are shown
_FIELDS = ("policies", "accuracy", "loss")


class Scores(NamedTuple):
    """What policies reach on some images.

    Attributes:
      accuracy: float64[n], the task's main figure, in percent.
      loss: float64[n], the task's loss.
    """

    accuracy: np.ndarray
    loss: np.ndarray


Evaluate = Callable[[np.ndarray], Scores]  # policies int[n, layers, 2]


class Tuning(NamedTuple):
    """The training before a policy is scored, the same for every policy.

    Attributes:
      steps: Number of steps.
      optimizer: Optimizer of the parameters.
      make_batch: Number of a step -> its batch.
      key: PRNG key of dropout.
    """

    steps: int
    optimizer: optax.GradientTransformation
    make_batch: Callable[[int], Batch]
    key: Key[Array, ""]


class Tested(NamedTuple):
    """The network whose policies are scored.

    Attributes:
      model: The network.
      task: Its loss and its score.
      variables: `params` and `batch_stats`, trained in float.
      quantize: What a policy does.
    """

    model: nn.Module
    task: Task
    variables: PyTree
    quantize: Quantize


def batches(data: Dataset, size: int) -> list[Batch]:
    """All images of a data set in batches, in memory."""
    starts = range(0, len(data), size)
    return [stacked(data, range(s, min(s + size, len(data)))) for s in starts]


def evaluator(
    tested: Tested,
    images: Sequence[Batch],
    norm_images: np.ndarray | None = None,
    tuning: Tuning | None = None,
    width: int = 1,
) -> Evaluate:
    """Returns a function that scores policies, each trained from the same weights first.

    The bits are data: nothing is compiled again for another policy.

    Args:
      tested: The network.
      images: The images on which policies are scored.
      norm_images: Images uint8[n, h, w, 3] of which batch norms take their statistics anew, under
        the policy. It costs a forward pass, and mends most of what few bits break. None: they
        keep those of the network in float, or of the training.
      tuning: The training before; None for none.
      width: Policies that one program runs at once, each with parameters of its own. On a CPU,
        one at a time is as fast.
    """
    task = tested.task
    run, settle = _programs(tested.model, task, tested.quantize, width)
    optimizer = tuning.optimizer if tuning else optax.identity()
    first = supervised.fresh_state(tested.variables, optimizer)
    train = _trainer(tested, tuning, width) if tuning and tuning.steps else None
    device = parallel.team().devices[0]
    held = [jax.device_put((b.images, jnp.asarray(b.labels)), device) for b in images]
    norms = None if norm_images is None else jax.device_put(norm_images, device)

    def score(bits) -> list[tuple[float, float]]:
        state: Any = jax.tree.map(lambda x: jnp.broadcast_to(x, (width, *x.shape)), first)
        state = train(bits, state) if train else state
        state = settle(bits, state, norms) if norms is not None else state
        counts: list[Any] = [0] * width
        losses = np.zeros(width)
        for batch, on_device in zip(images, held, strict=True):
            classes, loss = jax.device_get(run(bits, state, *on_device))
            losses += loss * len(batch.images)
            for place in range(width):
                found = ranked(classes[place], batch.labels)
                counts[place] = counts[place] + task.tally(batch.labels, found)
        total = sum(len(batch.images) for batch in images)
        figures = [task.score(count)[task.metric.name] for count in counts]
        return list(zip(figures, losses / total, strict=True))

    def evaluate(policies: np.ndarray) -> Scores:
        found = []
        for start in range(0, len(policies), width):
            chunk = policies[start : start + width]
            missing = width - len(chunk)
            padded = np.concatenate([chunk, np.repeat(chunk[-1:], missing, 0)])
            found += score(jnp.asarray(padded, jnp.int32))[: len(chunk)]
        values = np.array(found, np.float64).reshape(-1, 2)
        return Scores(values[:, 0], values[:, 1])

    return evaluate


@functools.lru_cache(maxsize=8)
def _programs(model: nn.Module, task: Task, quantize: Quantize, width: int):
    """The scoring and the norms' statistics as programs, one for all weights of a network."""

    def outputs(bits, state, images, labels):
        read = {**quantize(state.params, bits), "batch_stats": state.batch_stats}
        logits: Any = model.apply(read, pixels(images))
        return task.predict(logits, images.shape[1:3]), task.loss(logits, labels)

    def settled(bits, state, images):
        read = {**quantize(state.params, bits), "batch_stats": state.batch_stats}
        return state._replace(batch_stats=norms.settled(model, read, images))

    return jax.jit(_many(outputs, width, shared=2)), jax.jit(_many(settled, width, shared=1))


def _many(function: Callable, width: int, shared: int) -> Callable:
    """The function of a policy and a state, for several of both at once.

    For one, `vmap` is left out: it would turn conditions into the computation of both sides.

    Args:
      function: (bits, state, *shared arguments) -> outputs.
      width: Number of policies.
      shared: Number of shared arguments.
    """
    if width > 1:
        return jax.vmap(function, (0, 0, *[None] * shared))

    def one(bits, state, *given):
        first: Any = jax.tree.map(lambda x: x[0], (bits, state))
        return jax.tree.map(lambda x: x[None], function(*first, *given))

    return one


def _trainer(tested: Tested, tuning: Tuning, width: int) -> Callable:
    """A function (bits, states) -> states after the training."""
    step = supervised.policy_step(
        tested.model, tested.task.loss, tuning.optimizer, tuning.key, tested.quantize
    )
    steps = jax.jit(_many(step, width, shared=3))

    def train(bits, state: TrainState) -> TrainState:
        for number, batch in enumerate(prefetch(tuning.make_batch, 0, tuning.steps)):
            state, _ = steps(bits, state, *batch, jnp.int32(number))
        return state

    return train


def remembering(evaluate: Evaluate, file: pathlib.Path, title: str, at_once: int = 1) -> Evaluate:
    """Returns a function that evaluates each policy once, even if a run is interrupted.

    What was evaluated is saved every few seconds.

    Args:
      evaluate: Scores policies.
      file: Where scores are kept, an npz file.
      title: What progress lines call the work.
      at_once: Policies that are passed on together.
    """
    known = _read(file) if file.exists() else {}
    saved = [time.monotonic()]

    def save():
        _write(file, known)
        saved[0] = time.monotonic()

    def lookup(policies: np.ndarray) -> Scores:
        policies = np.asarray(policies, np.uint8)
        new = {p.tobytes(): p for p in policies if p.tobytes() not in known}
        progress, begin = Progress(title, len(new)), time.monotonic()
        try:
            for start in range(0, len(new), at_once):
                chunk = list(new.values())[start : start + at_once]
                rows = zip(chunk, *evaluate(np.stack(chunk)), strict=True)
                known.update({row[0].tobytes(): row for row in rows})
                if time.monotonic() - saved[0] > SAVE_SECONDS:
                    save()
                if len(new) >= MANY:
                    progress.show(min(start + at_once, len(new)))
        finally:  # also where the run is stopped
            if known and time.monotonic() - begin > WORTH_SECONDS:
                save()
        found = [known[p.tobytes()] for p in policies]
        return Scores(np.array([f[1] for f in found]), np.array([f[2] for f in found]))

    return lookup


def _read(file: pathlib.Path) -> dict[bytes, tuple]:
    with reading(file) as content, np.load(content) as found:
        rows = zip(*(found[name] for name in _FIELDS), strict=True)
        return {row[0].tobytes(): row for row in rows}


def _write(file: pathlib.Path, known: dict[bytes, tuple]) -> None:
    columns = zip(*known.values(), strict=True)
    with artefacts.writing(file) as out:
        held = {name: np.array(c) for name, c in zip(_FIELDS, columns, strict=True)}
        np.savez_compressed(out, allow_pickle=False, **held)
