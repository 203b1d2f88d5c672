"""The other ways to choose bits: the same network, quantizer, budget and scores for each."""

import logging
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from qnas_jax.haq.costs import Goal
from qnas_jax.run import artefacts
from qnas_jax.run.stage import read_json
from qnas_jax.search import allocation, evolution
from qnas_jax.search.evolution import Evolution
from qnas_jax.stages.scoring import Evaluate, Scores

logger = logging.getLogger(__name__)

DRAWN = ("random", "evolution", "haq")  # have a seed
EVOLUTION = Evolution(mutants=10, crossed=10)  # small generations: a policy costs an evaluation


class Found(NamedTuple):
    """What a method found for a goal.

    Attributes:
      goal: The goal.
      method: Name of the method.
      seed: Of its random numbers; 0 for a method without.
      bits: int64[layers, 2].
      evaluations: Number of different policies that it scored.
      seconds: How long it took. What an earlier method had scored took no time.
    """

    goal: Goal
    method: str
    seed: int
    bits: np.ndarray
    evaluations: int
    seconds: float


def once(
    file: pathlib.Path, goal: Goal, method: str, make: Callable[[], Iterable[Found]]
) -> list[Found]:
    """Returns what a method found for a goal; finds it only once, even if a run is interrupted.

    Args:
      file: Where everything that was found is kept, as JSON.
      goal: The goal.
      method: Name of the method.
      make: Finds it.
    """
    held, key = read_json(file) if file.exists() else {}, f"{method} for {goal}"
    if key not in held:
        rows = [found._replace(goal=None, bits=found.bits.tolist()) for found in make()]
        held[key] = [row._asdict() for row in rows]
        artefacts.write_json(file, held)
    rows = [{**row, "goal": goal, "bits": np.array(row["bits"], np.int64)} for row in held[key]]
    return [Found(**row) for row in rows]


class Effort(NamedTuple):
    """How much the methods may try.

    Attributes:
      seeds: Seeds of each method that draws random numbers.
      policies: That "random" and "evolution" score.
      per_round: Bits that "greedy" takes off after each round.
    """

    seeds: list[int]
    policies: int
    per_round: int


def run(goal: Goal, method: str, effort: Effort, evaluate: Evaluate) -> Iterator[Found]:
    """Yields what a method finds, once for each seed where it draws random numbers.

    Raises:
      InputError: No policy meets the budget.
    """
    logger.info("haq: %s for %s", method, goal)
    for seed in effort.seeds if method in DRAWN else effort.seeds[:1]:
        begin, counted, asked = time.monotonic(), *_counting(evaluate)
        bits = _METHODS[method](goal, seed, effort, counted)
        took = round(time.monotonic() - begin, 3)
        shown = seed if method in DRAWN else 0
        yield Found(goal, method, shown, np.asarray(bits, np.int64), len(asked), took)


def _counting(evaluate: Evaluate) -> tuple[Evaluate, set[bytes]]:
    """The function, and the policies that it is asked for."""
    asked: set[bytes] = set()

    def counted(policies: np.ndarray) -> Scores:
        asked.update(p.tobytes() for p in np.asarray(policies, np.uint8))
        return evaluate(policies)

    return counted, asked


def _uniform(goal: Goal, seed: int, effort: Effort, evaluate: Evaluate) -> np.ndarray:
    del seed, effort, evaluate
    return allocation.uniform(goal.choices)


def _random(goal: Goal, seed: int, effort: Effort, evaluate: Evaluate) -> np.ndarray:
    rng = np.random.default_rng(seed)
    policies = allocation.random(rng, goal.choices, effort.policies)
    return policies[np.argmax(evaluate(policies).accuracy)]


def _exact(goal: Goal, seed: int, effort: Effort, evaluate: Evaluate) -> np.ndarray:
    """Sensitivities are of the loss: on few images it is less noisy than the accuracy."""
    del seed, effort
    added = allocation.sensitivities(lambda p: evaluate(p).loss, goal.choices)
    return allocation.exact(allocation.monotone(added), goal.choices)


def _greedy(goal: Goal, seed: int, effort: Effort, evaluate: Evaluate) -> np.ndarray:
    del seed
    return allocation.greedy(lambda p: evaluate(p).loss, goal.choices, effort.per_round)


def _evolution(goal: Goal, seed: int, effort: Effort, evaluate: Evaluate) -> np.ndarray:
    """The first population is random; children that exceed the budget lose random bits."""
    choices = goal.choices
    count = max(1, min(2 * (EVOLUTION.mutants + EVOLUTION.crossed), effort.policies // 2))
    first = allocation.random(np.random.default_rng((seed, 1)), choices, count)
    state, left = evolution.init(first, -evaluate(first).accuracy), effort.policies - count

    def repair(rng: np.random.Generator, policies: np.ndarray) -> np.ndarray:
        orders = (rng.permutation(choices.slots) for _ in policies)
        trimmed = (allocation.trimmed(choices, *one) for one in zip(policies, orders, strict=True))
        return np.stack(list(trimmed))

    while left > 0:
        bounds = (choices.least, choices.most)
        children = evolution.ask(jax.random.key(seed), state, EVOLUTION, *bounds, repair=repair)
        children = children[:left]
        if not len(children):  # every policy within the budget has its score
            break
        state = evolution.tell(state, children, -evaluate(children).accuracy)
        left -= len(children)
    return state.genes[0]


_METHODS: dict[str, Callable[[Goal, int, Effort, Evaluate], Any]] = {
    "uniform": _uniform,
    "random": _random,
    "exact": _exact,
    "greedy": _greedy,
    "evolution": _evolution,
}
