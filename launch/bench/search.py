"""What other searchers miss on a table whose exact front is known, and how long they take.

Every searcher gets the same table and budgets: the exact fold, DNA's traversal as released,
evolution as in SPOS, NSGA-II, and random draws. The regret is what a found NSR sum exceeds the
lowest one within the budget by. `--lut runs/streets/lut/lut.npz` takes the table of a run; the
default is made up, as those of `front`.
"""

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import front
from qnas_jax.bwnas.lut import table
from qnas_jax.errors import InputError
from qnas_jax.ranking import aware
from qnas_jax.run import paths
from qnas_jax.search import evolution, nsga2, pareto, traversal
from qnas_jax.search.evolution import Evolution
from qnas_jax.search.nsga2 import NSGA2

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the way from the smallest to the largest subnet
RANDOM = 100_000
# (objectives of each block, budget, seed) -> NSR sum; the costs stand in the second column.
Searcher = Callable[[list[np.ndarray], float, int], float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subject."""
    parser.add_argument("--lut", help="lut.npz of a run")
    parser.add_argument("--seeds", type=int, default=3, help="of searchers that draw")
    parser.add_argument(
        "--traverse", action="store_true", help="DNA's traversal too; hours without --rows"
    )
    parser.add_argument("--rows", type=int, help="so many random rows of each block, not all")
    parser.add_argument("--bits", type=int, default=8, help="of the rows that are searched")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Searches with every searcher; prints a table; returns the figures."""
    if arguments.seeds < 1:
        raise InputError(f"--seeds={arguments.seeds}: must be at least 1")
    rows = _rows(arguments)
    tables = [rows.objectives(block, ("size_bytes",)) for block in range(rows.blocks)]
    if arguments.rows is not None:
        tables = _some(tables, arguments.rows)
    low, high = (sum(pick(t[:, 1]) for t in tables) for pick in (np.min, np.max))
    budgets = [low + share * (high - low) for share in SHARES]
    subnets = math.prod(map(len, tables))
    print(f"{sum(map(len, tables))} rows, {subnets:.3g} subnets, {len(budgets)} budgets")
    print("searcher     seeds  missed  regret mean    most  seconds a budget")
    best = [_exact(tables, budget, 0) for budget in budgets]
    found = []
    for name, searcher in SEARCHERS.items():
        if name == "traversal" and not arguments.traverse:
            continue
        seeds = range(arguments.seeds if name in DRAWING else 1)
        begin = time.perf_counter()
        sums = [[searcher(tables, budget, seed) for budget in budgets] for seed in seeds]
        seconds = (time.perf_counter() - begin) / len(seeds) / len(budgets)
        regret = np.array(sums) / best - 1
        missed = float((regret > 1e-6).mean())
        print(
            f"{name:12s} {len(seeds):5d} {100 * missed:6.0f} % {100 * regret.mean():9.2f} % "
            f"{100 * regret.max():6.2f} % {seconds:10.3f}"
        )
        figures = {"mean": regret.mean(), "most": regret.max(), "missed": missed}
        found.append({"searcher": name, **figures, "seconds": seconds})
    return {"rows": sum(map(len, tables)), "subnets": subnets, "searchers": found}


def _rows(arguments: argparse.Namespace) -> table.Table:
    if arguments.lut:
        rows = table.load(paths.named("--lut", arguments.lut))
        pair = (arguments.bits,) * 2
        if pair not in rows.bits:
            raise InputError(f"--bits={arguments.bits}: the table has {rows.bits}")
        return aware.at_bits(rows, pair)
    return front.made_up(front.CASES[0], noise=0.05, seed=0)


def _some(tables: list[np.ndarray], count: int) -> list[np.ndarray]:
    """Random rows of each block; all where it has no more."""
    if count < 1:
        raise InputError(f"--rows={count}: must be at least 1")
    rng = np.random.default_rng(0)
    return [t[rng.permutation(len(t))[:count]] for t in tables]


def _exact(tables: list[np.ndarray], budget: float, seed: int) -> float:
    del seed
    objectives = pareto.pareto_front(tables).objectives
    return float(objectives[objectives[:, 1] <= budget, 0].min())


def _traversal(tables: list[np.ndarray], budget: float, seed: int) -> float:
    """Its sum is of the losses as they are, though it searches with those in float16."""
    del seed
    rows = traversal.traverse(tables, np.nextafter(budget, np.inf)).rows
    return float(sum(t[row, 0] for t, row in zip(tables, rows, strict=True)))


def _random(tables: list[np.ndarray], budget: float, seed: int) -> float:
    rng = np.random.default_rng(seed)
    drawn = [t[rng.integers(len(t), size=RANDOM)] for t in tables]
    sums = np.sum(drawn, axis=0)
    return float(sums[sums[:, 1] <= budget, 0].min(initial=np.inf))


def _evolution(tables: list[np.ndarray], budget: float, seed: int) -> float:
    """A thousand subnets, as SPOS scores."""
    least, most = _bounds(tables)
    first, key = jax.random.split(jax.random.key(seed))

    def allowed(genes):
        return _sums(tables, genes)[:, 1] <= budget

    smallest = np.array([[t[:, 1].argmin() for t in tables]])  # within every budget
    genes = np.concatenate([smallest, evolution.random(first, 49, least, most, allowed)])
    state = evolution.init(genes, _sums(tables, genes)[:, 0])
    for _ in range(19):
        genes = evolution.ask(key, state, Evolution(), least, most, allowed)
        state = evolution.tell(state, genes, _sums(tables, genes)[:, 0])
    return float(state.scores[0])


def _nsga2(tables: list[np.ndarray], budget: float, seed: int) -> float:
    """A thousand subnets; the same ones for every budget."""
    how, (first, key) = NSGA2(), jax.random.split(jax.random.key(seed))
    least, most = _bounds(tables)
    genes = evolution.random(first, 50, least, most)
    state = nsga2.init(genes, _sums(tables, genes), how)
    for _ in range(19):
        genes = nsga2.ask(key, state, how, least, most)
        state = nsga2.tell(state, genes, _sums(tables, genes), how)
    fitting = state.objectives[state.objectives[:, 1] <= budget, 0]
    return float(fitting.min(initial=np.inf))


def _bounds(tables: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(len(tables), int), np.array([len(t) - 1 for t in tables])


def _sums(tables: list[np.ndarray], genes: np.ndarray) -> np.ndarray:
    return np.sum([t[rows] for t, rows in zip(tables, genes.T, strict=True)], axis=0)


SEARCHERS: dict[str, Searcher] = {
    "exact": _exact,
    "evolution": _evolution,
    "nsga2": _nsga2,
    "random": _random,
    "traversal": _traversal,
}
DRAWING = ("evolution", "nsga2", "random")
