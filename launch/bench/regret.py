"""How far each search is from the best network of the benchmark, and which score ranks like it.

Every search gets the same budgets, trainings and evaluations. It sees the accuracies of one
training and is judged by the others. `nsr` needs no accuracy: its answer is its first candidate.
"""

import argparse
import time
from typing import Any

import numpy as np

from qnas_jax import benchmark
from qnas_jax.benchmark import Question, ranked
from qnas_jax.benchmark.learners import LEARNERS
from qnas_jax.benchmark.searchers import SEARCHES
from qnas_jax.errors import InputError
from qnas_jax.run import paths

COSTS = ("size_bytes", "bitfusion/latency_ms")
SHARES = (0.1, 0.25, 0.5)  # of the way from the cheapest to the dearest candidate
COUNTS = (1, 10, 30, 100, 300)  # evaluations that a search is allowed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subject."""
    parser.add_argument("--benchmark", help="objects.npz; else the one that comes with the package")
    parser.add_argument("--repeats", type=int, default=1, help="of a search, for each training")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints both tables; returns the figures."""
    if arguments.repeats < 1:
        raise InputError(f"--repeats={arguments.repeats}: must be at least 1")
    given = arguments.benchmark
    found = benchmark.load(None if given is None else paths.named("--benchmark", given))
    budgets = [(cost, budget) for cost in COSTS for budget in _budgets(found, cost)]
    questions = [
        [Question(found, cost, budget, seed) for seed in range(found.seeds)]
        for cost, budget in budgets
    ]
    print(f"regret in points, mean of {len(budgets)} budgets and {found.seeds} trainings")
    print(f"{'evaluations':12}" + "".join(f"{count:>15}" for count in COUNTS) + f"{'seconds':>10}")
    rows = []
    for name, search in {**SEARCHES, **LEARNERS}.items():
        losses, seconds = _losses(search, questions, arguments.repeats)
        rows.append({"search": name, **_figures(losses), "seconds": seconds})
        print(_line(rows[-1]))
    seen = [[benchmark.regret(q, benchmark.every(q))[-1] for q in own] for own in questions]
    print(f"all candidates of one training looked at: {np.mean(seen):.2f}")
    figures = ranked.everything(found)
    print(ranked.as_text(figures))
    return {"searches": rows, "all_looked_at": float(np.mean(seen)), **figures}


def _budgets(found: benchmark.Benchmark, cost: str) -> list[float]:
    table = found.cost_tables[cost]
    low, high = (float(pick(table, (1, 2)).sum()) for pick in (np.min, np.max))
    return [found.fixed_costs[cost] + low + share * (high - low) for share in SHARES]


def _losses(
    search: benchmark.Search, questions: list[list[Question]], repeats: int
) -> tuple[np.ndarray, float]:
    """Regrets [budgets, trainings and repeats, counts]; median seconds of the longest searches."""
    losses, seconds = [], []
    for own in questions:
        rows = []
        for question in own:
            for repeat in range(repeats):
                row = []
                for count in COUNTS:
                    begin = time.perf_counter()
                    genes = search(repeat, question, count)
                    took = time.perf_counter() - begin
                    row.append(benchmark.regret(question, genes)[-1])
                seconds.append(took)
                rows.append(row)
        losses.append(rows)
    return np.array(losses), float(np.median(seconds))


def _figures(losses: np.ndarray) -> dict[str, list[float]]:
    """The mean, and its standard error for these budgets: over trainings and repeats alone."""
    count = losses.shape[0] * losses.shape[1]
    error = np.sqrt(losses.var(1, ddof=1).mean(0) / count)
    return {"mean": losses.mean((0, 1)).tolist(), "error": error.tolist()}


def _line(row: dict[str, Any]) -> str:
    cells = [f"{m:.2f} +- {e:.2f}" for m, e in zip(row["mean"], row["error"], strict=True)]
    return f"{row['search']:12}" + "".join(f"{c:>15}" for c in cells) + f"{row['seconds']:10.2f}"
