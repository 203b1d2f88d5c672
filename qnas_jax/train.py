"""The one training loop. What is trained is a step function that is given to it."""

import contextlib
import logging
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from qnas_jax import checkpoint, parallel, preempt
from qnas_jax.data.batching import Batch, Timed, prefetch
from qnas_jax.runlog import Metrics, Progress, duration

logger = logging.getLogger(__name__)

State = TypeVar("State")
# (state, images, labels, step) -> new state, {name of a metric: value}
StepFunction = Callable[[State, Any, Any, jax.Array], tuple[State, dict[str, jax.Array]]]

# How a state is laid out for the steps, from the form in which it is saved; and the reverse.
Forms = Sequence[Callable[[Any], Any]]
AS_IT_IS: Forms = (lambda state: state, lambda state: state)


class Diverged(RuntimeError):
    """A loss or a state is no longer finite; the message names whose, and the step."""


class Watched(NamedTuple):
    """What of a state has a loss and a learning rate of its own.

    Attributes:
      name: What errors call it, e.g. "block 3".
      loss: The name of its loss among the metrics.
      rate: Its learning rate at a step, counted from 0.
      setting: What that rate is set by, e.g. "supernet.lr".
      of: Takes it from the whole state.
    """

    name: str
    loss: str
    rate: Callable[[int], Any]
    setting: str
    of: Callable[[Any], Any]


def fit(
    step_function: StepFunction,
    state: State,
    make_batch: Callable[[int], Batch],
    *,
    steps: int,
    folder: pathlib.Path,
    save_every: int,
    title: str,
    watched: Sequence[Watched],
    metrics: Metrics,
    log_every: int,
    threads: int = 2,
    forms: Forms = AS_IT_IS,
) -> State:
    """Runs steps until `steps` are done, resuming from the folder's latest checkpoint.

    Args:
      step_function: One training step; it is handed the step's number, from which all of
        its randomness must come.
      state: The state to begin with where nothing is saved.
      make_batch: The batch of a step.
      steps: Number of steps in all.
      folder: Where checkpoints are kept.
      save_every: Steps between two checkpoints.
      title: What the training is called in progress lines and errors.
      watched: What may diverge: together, the whole state.
      metrics: Records the metrics.
      log_every: Steps between two lines of metrics.
      threads: Threads that make batches.
      forms: The step's form of a state from the saved one, and the reverse.

    Returns:
      The state after the last step, in the form in which it is saved.

    Raises:
      Diverged: A loss, or a state that was to be saved, is not finite; the last checkpoint
        is kept.
      Stopped: SIGTERM came; the step that it came in is done and saved.
    """
    alone = jax.process_count() == 1  # else JAX takes SIGTERM, and all processes agree on a step
    with (
        preempt.noting(alone) as asked,
        contextlib.closing(checkpoint.open_folder(folder)) as manager,
    ):
        first, saved = checkpoint.restore(manager, state)
        spread, gathered = forms
        state = spread(saved)
        if 0 < first < steps:
            logger.info("%s: resumed at step %d of %d", title, first, steps)
        guard = _Guard(manager, title, watched, first)
        progress = Progress(title, steps, first)
        batches = Timed(prefetch(make_batch, first, steps, threads))
        done, found = first, {}
        while done < steps and not (asked() or parallel.stop_is_agreed(done)):
            before = found
            state, found = step_function(state, *next(batches), jnp.int32(done))
            # Waits for the step before, while this one is computed: steps that were queued
            # further ahead would have to be finished before a stop.
            guard.check(done, before)
            done += 1
            if done % log_every == 0 or done % save_every == 0 or done == steps:
                _tell(done, guard.check(done, found), metrics, progress)
            if done % save_every == 0 or done == steps:
                saved = guard.save(done, gathered(state))
        if done > guard.saved:
            guard.check(done, found)
            saved = guard.save(done, gathered(state))
        manager.wait_until_finished()
        if done < steps or asked():
            raise preempt.Stopped(f"stopped by SIGTERM at step {done} of {title}")
        if done > first:
            took, waited = duration(batches.elapsed()), 100 * batches.share()
            told = "%s: %d steps in %s, %.1f %% of it waiting for pictures"
            logger.info(told, title, done - first, took, waited)
        return saved


def _tell(done, values, metrics, progress) -> None:
    metrics.write(done, values)
    texts = [f"{name} {value:.4g}" for name, value in values.items()]
    progress.show(done, ", ".join(texts[:3]))


class _Guard:
    """Looks at every loss and saves states, none that is not finite.

    Attributes:
      saved: The step of the last state that is saved; 0: there is none.
    """

    def __init__(self, manager: Any, title: str, watched: Sequence[Watched], saved: int):
        self._manager, self._title, self._watched = manager, title, watched
        self.saved = saved

    def check(self, done: int, found: dict[str, jax.Array]) -> dict[str, float]:
        """The metrics of the step that was the `done`th; none before the first."""
        values = {name: float(value) for name, value in found.items()}
        for part in self._watched if values else ():
            if not math.isfinite(values[part.loss]):
                self._give_up(part, f"loss {values[part.loss]}", done)
        return values

    def save(self, done: int, state: State) -> State:
        """Saves the state after `done` steps, on the first process; gives it back.

        As all of it is looked at here, a step behind may take its memory while it is written.

        The losses tell of the state before: only a look at it finds what its last update broke.
        """
        for part in self._watched:
            leaves = jax.device_get(jax.tree.leaves(part.of(state)))
            if not all(np.isfinite(leaf).all() for leaf in leaves):
                self._give_up(part, "a state that is not finite", done)
        if parallel.is_first():  # all hold the same
            checkpoint.save(self._manager, done, state)
        self.saved = done
        return state

    def _give_up(self, part: Watched, what: str, done: int) -> None:
        kept = f"the state of step {self.saved} is kept" if self.saved else "no step was saved yet"
        raise Diverged(
            f"{self._title}: {part.name} has {what} at step {done} with learning rate "
            f"{float(part.rate(done - 1)):.3g}; {kept}; lower {part.setting}"
        )
