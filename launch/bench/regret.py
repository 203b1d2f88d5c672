"""How far each search is from the best network of the benchmark, and which score ranks like it.

Every search gets the same budgets, seeds and evaluations; it sees the accuracies of one training
and is judged by the mean of all. `exact` is the best that one training shows: what is lost there
is lost to training noise.
"""

import argparse
import time
from typing import Any

import numpy as np

from qnas_jax import benchmark
from qnas_jax.benchmark import Question, ranked
from qnas_jax.benchmark.learners import LEARNERS
from qnas_jax.benchmark.searchers import SEARCHES
from qnas_jax.run import paths

COSTS = ("size_bytes", "bitfusion/latency_ms")
SHARES = (0.1, 0.25, 0.5)  # of the way from the cheapest to the dearest candidate
AFTER = (1, 10, 30, 100, 300)  # evaluations


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subject."""
    parser.add_argument("--benchmark", help="objects.npz; else the one that comes with the package")
    parser.add_argument("--repeats", type=int, default=3, help="of a search, for each training")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints both tables; returns the figures."""
    given = arguments.benchmark
    found = benchmark.load(None if given is None else paths.named("--benchmark", given))
    questions = [
        Question(found, cost, budget, seed)
        for cost in COSTS
        for budget in _budgets(found, cost)
        for seed in range(found.seeds)
    ]
    print(f"regret in points after so many evaluations, mean over {len(questions)} questions")
    print(f"{'search':12}" + "".join(f"{count:>14}" for count in AFTER) + f"{'seconds':>10}")
    rows = []
    for name, search in {**SEARCHES, **LEARNERS}.items():
        begin, losses = time.perf_counter(), []
        repeats = 1 if name == "nsr" else arguments.repeats
        for question in questions:
            for repeat in range(repeats):
                regret = benchmark.regret(question, search(repeat, question, AFTER[-1]))
                losses.append([regret[min(count, len(regret)) - 1] for count in AFTER])
        seconds = (time.perf_counter() - begin) / len(losses)
        rows.append({"search": name, **_figures(np.array(losses)), "seconds": seconds})
        print(_line(rows[-1]))
    seen = [_exact(question) for question in questions]
    print(f"{'exact':12}{np.mean(seen):{14 * len(AFTER)}.2f}  (all candidates are looked at)")
    print(ranked.as_text(found))
    return {"searches": rows, "exact": float(np.mean(seen))}


def _budgets(found: benchmark.Benchmark, cost: str) -> list[float]:
    table = found.cost_tables[cost]
    low, high = (float(pick(table, (1, 2)).sum()) for pick in (np.min, np.max))
    return [found.fixed_costs[cost] + low + share * (high - low) for share in SHARES]


def _exact(question: Question) -> float:
    """The regret of what looks best to one training among all candidates."""
    genes = benchmark.every(question)
    return float(benchmark.regret(question, genes)[-1])


def _figures(losses: np.ndarray) -> dict[str, list[float]]:
    error = losses.std(0, ddof=1) / np.sqrt(len(losses))
    return {"mean": losses.mean(0).tolist(), "error": error.tolist()}


def _line(row: dict[str, Any]) -> str:
    cells = [f"{m:.2f} +- {e:.2f}" for m, e in zip(row["mean"], row["error"], strict=True)]
    return f"{row['search']:12}" + "".join(f"{c:>14}" for c in cells) + f"{row['seconds']:10.2f}"
