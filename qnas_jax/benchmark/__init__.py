"""A benchmark: all networks of a small space, trained, under all policies.

    found = qn.benchmark.load()
    found.accuracy(ops=np.array([3, 3, 3, 3]), bits=np.array([0, 2, 2, 0]))   # percent
    question = qn.benchmark.Question(found, "size_bytes", budget=20_000)
    qn.benchmark.regret(question, qn.benchmark.random_search(0, question, 100))

`objects.md` says what was trained and how; `qnas benchmark` makes it anew.
"""

from qnas_jax.benchmark.agent import agent_search
from qnas_jax.benchmark.learners import (
    LEARNERS,
    evolution_search,
    gradient_search,
    predictor_search,
)
from qnas_jax.benchmark.searchers import (
    SEARCHES,
    Question,
    Search,
    every,
    nsr_search,
    random_search,
    regret,
)
from qnas_jax.benchmark.table import Benchmark, load, save

__all__ = [
    "LEARNERS",
    "SEARCHES",
    "Benchmark",
    "Question",
    "Search",
    "agent_search",
    "every",
    "evolution_search",
    "gradient_search",
    "load",
    "nsr_search",
    "predictor_search",
    "random_search",
    "regret",
    "save",
]
