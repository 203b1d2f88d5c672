"""The one training loop. What is trained is a step function that is given to it."""

import logging
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from qnas_jax import checkpoint, parallel
from qnas_jax.data.batching import Batch, prefetch
from qnas_jax.runlog import Metrics, Progress

logger = logging.getLogger(__name__)

State = TypeVar("State")
# (state, images, labels, step) -> new state, {name of a metric: value}
StepFunction = Callable[[State, Any, Any, jax.Array], tuple[State, dict[str, jax.Array]]]


# How a state is laid out for the steps, from the form in which it is saved; and the reverse.
Forms = Sequence[Callable[[Any], Any]]
AS_IT_IS: Forms = (lambda state: state, lambda state: state)


class Diverged(RuntimeError):
    """A loss is no longer finite; the message names the stage, the step and the loss."""


def fit(
    step_function: StepFunction,
    state: State,
    make_batch: Callable[[int], Batch],
    *,
    steps: int,
    folder: pathlib.Path,
    save_every: int,
    title: str,
    metrics: Metrics,
    log_every: int,
    threads: int = 2,
    forms: Forms = AS_IT_IS,
) -> State:
    """Runs steps until `steps` are done, resuming from the folder's latest checkpoint.

    Args:
      step_function: One training step; it is handed the step's number, from which all of
        its randomness must come.
      state: The state to begin with where nothing is saved; donated.
      make_batch: The batch of a step.
      steps: Number of steps in all.
      folder: Where checkpoints are kept.
      save_every: Steps between two checkpoints.
      title: What the training is called in progress lines and errors.
      metrics: Records the metrics.
      log_every: Steps between two lines of metrics.
      threads: Threads that make batches.
      forms: The step's form of a state from the saved one, and the reverse.

    Returns:
      The state after the last step, in the form in which it is saved.

    Raises:
      Diverged: A metric is not finite; the checkpoints are kept.
    """
    manager = checkpoint.open_folder(folder)
    try:
        start, saved = checkpoint.restore(manager, state)
        spread, gathered = forms
        state = spread(saved)
        if 0 < start < steps:
            logger.info("%s: resumed at step %d of %d", title, start, steps)
        progress = Progress(title, steps, start)
        batches = prefetch(make_batch, start, steps, threads)
        for step, batch in zip(range(start, steps), batches, strict=True):
            state, found = step_function(state, *batch, jnp.int32(step))
            done = step + 1
            if done % log_every == 0 or done % save_every == 0 or done == steps:
                values = {name: float(value) for name, value in found.items()}
                _check_finite(values, title, step, manager.latest_step())
                metrics.write(done, values)
                texts = [f"{name} {value:.4g}" for name, value in values.items()]
                progress.show(done, ", ".join(texts[:3]))
            if done % save_every == 0 or done == steps:
                saved = gathered(state)
                if parallel.is_first():  # all hold the same
                    checkpoint.save(manager, done, saved)
        manager.wait_until_finished()
        return saved
    finally:
        manager.close()


def _check_finite(values, title, step, saved):
    for name, value in values.items():
        if not math.isfinite(value):
            kept = f"step {saved} is kept" if saved else "no step was saved yet"
            raise Diverged(f"{title}: {name} is {value} at step {step}; {kept}")
