"""The training loop. It is given the step function.

A step takes (state, images, labels, its number) and returns the new state and
{name of a metric: value}. The loop dispatches several steps at once, see `several` and
`distill_pmap.train_step`; all arguments but the state then have a leading axis.
"""

import functools
import logging
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from qnas_jax.data.batching import Batch, Timed, prefetch
from qnas_jax.errors import Diverged
from qnas_jax.run import parallel, preempt, processes
from qnas_jax.run.log import Metrics, Progress, duration
from qnas_jax.train import checkpoint

logger = logging.getLogger(__name__)

# In metrics: the share of the time so far, of this process, that steps waited for images.
WAITED = "input_wait_share"

NO_BATCH = Batch(np.zeros(0, np.uint8), np.zeros(0, np.int32))  # for steps that read no images

State = TypeVar("State")
# (state, images[k], labels[k], numbers[k]) -> new state, {name of a metric: values[k]}
Steps = Callable[[State, Any, Any, np.ndarray], tuple[State, dict[str, jax.Array]]]


class Layout(NamedTuple):
    """How a state and its images are laid out for the steps.

    Attributes:
      spread: The steps' form of a saved state; a copy, because steps reuse the memory of theirs.
      gather: The reverse.
      place: The steps' form of this process's images and labels.
    """

    spread: Callable[[Any], Any]
    gather: Callable[[Any], Any]
    place: Callable[[Any], Any] = lambda batch: batch


def _copied(state: State) -> State:
    """A copy that is placed like the results of steps; else the second step compiles again."""
    device = parallel.team().devices[0]
    return jax.tree.map(lambda leaf: jax.device_put(jnp.copy(leaf), device), state)


AS_SAVED = Layout(_copied, lambda state: state)


class Watched(NamedTuple):
    """A part of a state that has its own loss and learning rate.

    Attributes:
      name: Its name in errors, e.g. "block 3".
      loss: The name of its loss among the metrics.
      rate: Step, counted from 0 -> learning rate.
      setting: The setting of the learning rate, e.g. "supernet.lr".
      of: Whole state -> this part.
    """

    name: str
    loss: str
    rate: Callable[[int], Any]
    setting: str
    of: Callable[[Any], Any]


def several(step: Callable, *constants: Any) -> Steps:
    """Returns several steps as one program, which reuses the memory of its input state.

    Args:
      step: A step whose first arguments are `constants`.
      constants: Arguments of all steps. A program that captured them would contain their
        numbers.
    """
    return with_constants(program(step), *constants)


def with_constants(steps: Callable, *constants: Any) -> Steps:
    """Returns the steps of a program of `program`, with its constants where the state is."""
    placed: dict[Any, Any] = {}

    def run(state, images, labels, numbers):
        where = jax.tree.leaves(state)[0].sharding
        if where not in placed:
            placed[where] = parallel.on_all(where, constants)
        return steps(placed[where], state, images, labels, numbers)

    return run


def program(step: Callable) -> Callable:
    """Returns the program of `several`, whose first argument is the tuple of constants.

    It is for trainings that differ in them alone, so that they are compiled once.
    """

    @functools.partial(jax.jit, donate_argnums=1)
    def steps(constants, state, images, labels, numbers):
        def one(state, given):
            return step(*constants, state, *given)

        return scanned(one, state, (images, labels, numbers))

    return steps


def scanned(step: Callable, state: Any, given: Any) -> tuple[Any, Any]:
    """Returns `lax.scan`, but without a loop if there is one step.

    On CPUs, XLA runs the body of a loop on fewer threads, which may take twice as long.
    """
    if len(jax.tree.leaves(given)[0]) > 1:
        return lax.scan(step, state, given)
    state, values = step(state, jax.tree.map(lambda x: x[0], given))
    return state, jax.tree.map(lambda x: x[None], values)


class Plan(NamedTuple):
    """How a training proceeds.

    Attributes:
      title: The name of the training in progress lines and errors.
      total: Number of steps.
      folder: The folder of checkpoints.
      watched: The parts that may diverge; together, the whole state.
      save_every: Steps between two checkpoints.
      log_every: Steps between two lines of metrics.
      per_dispatch: Steps in one program.
      threads: Threads that make batches.
    """

    title: str
    total: int
    folder: pathlib.Path
    watched: Sequence[Watched]
    save_every: int
    log_every: int
    per_dispatch: int = 1
    threads: int = 2


def fit(
    steps: Steps,
    state: State,
    make_batch: Callable[[int], Batch],
    plan: Plan,
    metrics: Metrics,
    layout: Layout = AS_SAVED,
) -> State:
    """Runs all steps, resuming from the folder's latest checkpoint.

    Args:
      steps: Several training steps. All their randomness must come from their numbers.
      state: The initial state, if there is no checkpoint.
      make_batch: Number of a step -> its batch.
      plan: How many steps, and how often states are saved and metrics are logged.
      metrics: Records the metrics.
      layout: How a state is laid out for the steps.

    Returns:
      The state after the last step, in the layout in which it is saved.

    Raises:
      Diverged: A loss, or a state to be saved, is not finite; the last checkpoint is kept.
      Stopped: SIGTERM came; the steps that were running are finished and saved.
    """
    with preempt.noting() as asked, checkpoint.opened(plan.folder) as manager:
        guard = _Guard(manager, plan, *checkpoint.restore(manager, state))
        first = guard.saved
        processes.check_same(f"the checkpoint of {plan.title} has steps", first)
        metrics.resume(first)
        stops = processes.Stops(plan.title, lambda: asked() or parallel.is_given_up())
        spans = list(_spans(first, plan))
        making = prefetch(lambda i: _stacked(make_batch, spans[i]), 0, len(spans), plan.threads)
        batches = Timed(making)
        _run(steps, _until_stopped(spans, stops), batches, plan, guard, metrics, layout)
        checkpoint.wait(manager)
        if stops.at_the_end() or guard.saved < plan.total:
            raise preempt.Stopped(f"stopped by SIGTERM at step {guard.saved} of {plan.title}")
        _log_time(plan.title, guard.saved - first, batches)
        return guard.state


def _run(
    steps: Steps,
    spans: Iterable[range],
    batches: Timed[Batch],
    plan: Plan,
    guard: "_Guard",
    metrics: Metrics,
    layout: Layout,
) -> None:
    """Runs the steps of the spans from the guard's state on; saves the last state."""
    state, done, found = layout.spread(guard.state), range(guard.saved, guard.saved), {}
    if 0 < guard.saved < plan.total:
        logger.info("%s: resumed at step %d of %d", plan.title, guard.saved, plan.total)
    progress = Progress(plan.title, plan.total, guard.saved)
    for span in spans:
        before = done, found
        images, labels = layout.place(next(batches))
        state, found = steps(state, images, labels, np.array(span, np.int32))
        # Waits for the previous steps while these run. A longer queue would have to be
        # finished before a stop.
        guard.check(*before)
        done = span
        to_save = done.stop % plan.save_every == 0 or done.stop == plan.total
        logged = [n + 1 for n in done if (n + 1) % plan.log_every == 0]
        if logged or to_save:
            logged = sorted({*logged, done.stop}) if to_save else logged
            _log(logged, guard.check(done, found), batches.share(), metrics, progress)
        if to_save:
            metrics.sync()
            guard.save(done.stop, layout.gather(state))
    if done.stop > guard.saved:
        guard.check(done, found)
        guard.save(done.stop, layout.gather(state))


def _until_stopped(spans: Sequence[range], stops: processes.Stops) -> Iterator[range]:
    """Yields the spans, until a stop is asked for."""
    for round_, span in enumerate(spans):
        if stops.before(round_):
            return
        yield span


def _spans(first: int, plan: Plan) -> Iterator[range]:
    """Yields the steps from `first` on, in the spans that are dispatched.

    The spans do not depend on `first`, so that a resumed run uses the same programs as an
    uninterrupted one. Programs of other lengths would round differently.
    """
    cuts = plan.per_dispatch, plan.save_every
    while first < plan.total:
        stop = min(*((first // every + 1) * every for every in cuts), plan.total)
        yield range(first, stop)
        first = stop


def _stacked(make_batch: Callable[[int], Batch], span: range) -> Batch:
    """The batches of several steps."""
    batches = [make_batch(number) for number in span]
    return Batch(*(np.stack(arrays) for arrays in zip(*batches, strict=True)))


def _log(logged, values, waited, metrics, progress) -> None:
    """Records the metrics after the steps `logged`; `values` are by step."""
    for done in logged:
        metrics.write(done, {**values[done], WAITED: round(waited, 4)})
    texts = [f"{name} {value:.4g}" for name, value in values[logged[-1]].items()]
    progress.show(logged[-1], ", ".join(texts[:3]))


def _log_time(title: str, steps: int, batches: Timed) -> None:
    """Logs how long the steps took."""
    if steps > 0:
        took, waited = duration(batches.elapsed()), 100 * batches.share()
        line = "%s: %d steps in %s, %.1f %% of it waiting for images"
        logger.info(line, title, steps, took, waited)


class _Guard:
    """Checks every loss, and saves states that are finite.

    Attributes:
      saved: The step of the last saved state; 0 if there is none.
      state: That state, or the initial one. The next steps may reuse its memory.
    """

    def __init__(self, manager: Any, plan: Plan, saved: int, state: Any):
        self._manager, self._plan = manager, plan
        self.saved, self.state = saved, state

    def check(self, span: range, found: dict[str, jax.Array]) -> dict[int, dict[str, float]]:
        """Returns the metrics of a span, by the number of steps done."""
        by_name = {name: np.asarray(values) for name, values in found.items()}
        by_step = {}
        for place, number in enumerate(span):
            values = {name: float(of_span[place]) for name, of_span in by_name.items()}
            for part in self._plan.watched:
                if not math.isfinite(values[part.loss]):
                    self._give_up(part, f"loss {values[part.loss]}", number + 1)
            by_step[number + 1] = values
        return by_step

    def save(self, done: int, state: Any) -> None:
        """Saves the state after `done` steps, on the first process.

        The losses are those of the previous state, so a broken update is only found in the state
        itself. All of it is copied here: while it is written, the next step may reuse its memory.
        """
        for part in self._plan.watched:
            leaves = jax.device_get(jax.tree.leaves(part.of(state)))
            if not all(np.isfinite(leaf).all() for leaf in leaves):
                self._give_up(part, "a state that is not finite", done)
        if parallel.is_first():  # all hold the same
            checkpoint.save(self._manager, done, state)
        self.saved, self.state = done, state

    def _give_up(self, part: Watched, what: str, done: int) -> None:
        plan = self._plan
        kept = f"the state of step {self.saved} is kept" if self.saved else "no step was saved yet"
        raise Diverged(
            f"{plan.title}: {part.name} has {what} at step {done} with learning rate "
            f"{float(part.rate(done - 1)):.3g}; {kept}; "
            f"lower {part.setting} and delete {plan.folder.parent}"
        )
