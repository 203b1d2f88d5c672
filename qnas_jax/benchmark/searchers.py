"""Searches on the benchmark, and how far their choices are from the best within a budget.

    found = benchmark.load()
    question = benchmark.Question(found, "bitfusion/latency_ms", budget=0.02, seed=0)
    genes = benchmark.random_search(0, question, evaluations=100)
    benchmark.regret(question, genes)  # percentage points after each evaluation

A search is any function of the type `Search`: it looks at networks through `Question.accuracy` and
`Question.costs` and returns their genes in the order in which it looked at them. So evolution, a
predictor or an agent needs one such function, and `regret` compares them all.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from qnas_jax.benchmark.table import Benchmark
from qnas_jax.errors import InputError
from qnas_jax.search.pareto import pareto_front


class Question(NamedTuple):
    """Which network and policy is most accurate within a budget?

    A candidate is its genes, int[2 * blocks]: the place of each block's op in `space.ops`, then the
    place of each block's bitwidth in `bits`.

    Attributes:
      benchmark: All candidates.
      cost: The name of the cost that is bounded, a key of `benchmark.cost_tables`.
      budget: The most that a candidate may cost.
      seed: The training whose accuracy a search sees; None: the mean of all.
    """

    benchmark: Benchmark
    cost: str
    budget: float
    seed: int | None = None

    @property
    def judges(self) -> list[int]:
        """The trainings that a choice is judged by: those that the search did not see."""
        every_one = range(self.benchmark.seeds)
        return [seed for seed in every_one if seed != self.seed] or [*every_one]

    @property
    def counts(self) -> Int[np.ndarray, "genes"]:
        """How many values each gene has."""
        found = self.benchmark
        blocks = len(found.space.blocks)
        return np.repeat([len(found.space.ops), len(found.bits)], blocks)

    def accuracy(self, genes: Int[np.ndarray, "*n genes"]) -> Float[np.ndarray, "*n"]:
        """What a search sees of candidates: the accuracy of one training, in percent."""
        return self.benchmark.accuracy(*_halves(genes), self.seed)

    def costs(self, genes: Int[np.ndarray, "*n genes"]) -> Float[np.ndarray, "*n"]:
        """What candidates cost."""
        return self.benchmark.cost(self.cost, *_halves(genes))

    def allowed(self, genes: Int[np.ndarray, "*n genes"]) -> Bool[np.ndarray, "*n"]:
        """Whether candidates are within the budget."""
        return np.asarray(self.costs(genes) <= self.budget)

    def check(self) -> None:
        """Refuses what cannot be asked.

        Raises:
          InputError: The cost or the seed is unknown, or no candidate is within the budget.
        """
        found = self.benchmark
        if self.cost not in found.cost_tables:
            raise InputError(f"cost={self.cost!r}: must be one of {', '.join(found.cost_tables)}")
        if self.seed is not None and not 0 <= self.seed < found.seeds:
            raise InputError(f"seed={self.seed}: must be None or lie in [0, {found.seeds - 1}]")
        least = found.cost_tables[self.cost].min((1, 2)).sum() + found.fixed_costs[self.cost]
        if not self.budget >= least:
            raise InputError(f"budget={self.budget:g}: the least {self.cost} is {least:g}")


# (seed, question, evaluations) -> the genes of at most so many candidates within the budget, in the
# order in which the search looked at them: int[evaluations, genes].
Search: TypeAlias = Callable[[int, Question, int], Int[np.ndarray, "evaluations genes"]]


def _halves(genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of ops and those of bitwidths."""
    blocks = np.shape(genes)[-1] // 2
    return genes[..., :blocks], genes[..., blocks:]


def every(question: Question) -> Int[np.ndarray, "candidates genes"]:
    """Returns the genes of all candidates within the budget.

    Raises:
      InputError: The question cannot be asked.
    """
    question.check()
    counts = tuple(map(int, question.counts))
    genes = np.stack(np.unravel_index(np.arange(np.prod(counts)), counts), axis=1)
    return genes[question.allowed(genes)]


def cheapest(question: Question) -> Int[np.ndarray, "genes"]:
    """Returns the genes of the candidate of the lowest cost."""
    table = question.benchmark.cost_tables[question.cost]
    flat = table.reshape(len(table), -1).argmin(1)
    return np.concatenate(np.divmod(flat, table.shape[2]))


def random_search(
    seed: int, question: Question, evaluations: int
) -> Int[np.ndarray, "evaluations genes"]:
    """Looks at different candidates within the budget, drawn uniformly.

    Args:
      seed: What they are drawn from.
      question: The budget.
      evaluations: How many candidates, at most.
    """
    genes = every(question)
    chosen = np.random.default_rng(seed).permutation(len(genes))[:evaluations]
    return genes[chosen]


def nsr_search(
    seed: int, question: Question, evaluations: int
) -> Int[np.ndarray, "evaluations genes"]:
    """Looks at the points of the exact front of NSR and cost, the lowest NSR first.

    This is QA-BWNAS's search: it needs no accuracy, so its first candidate is its answer.

    Args:
      seed: Changes nothing, as nothing is drawn.
      question: The budget.
      evaluations: How many candidates, at most.

    References:
      Lu et al., 2023, https://arxiv.org/abs/2401.12350.
    """
    del seed
    question.check()
    found = question.benchmark
    scores, costs = found.nsr[:, :, 1:].astype(np.float64), found.cost_tables[question.cost]
    tables = [np.stack(pair, axis=-1).reshape(-1, 2) for pair in zip(scores, costs, strict=True)]
    ops, bits = np.divmod(pareto_front(tables).rows, len(found.bits))
    genes = np.concatenate([ops, bits], axis=1)  # ascending by NSR
    return genes[question.allowed(genes)][:evaluations]


SEARCHES: dict[str, Search] = {"random": random_search, "nsr": nsr_search}


def regret(
    question: Question, genes: Int[np.ndarray, "evaluations genes"]
) -> Float[np.ndarray, "evaluations"]:
    """Returns how much less accurate a search's choice is than the best candidate.

    After each evaluation the choice is the candidate within the budget that looked best to the
    search. It is judged by the mean accuracy of the trainings that the search did not see, as is
    the best candidate: what a search gains from the noise of the training it saw does not count.
    Noise is in the judgement, too, so not even the best network of all would have no regret.

    Args:
      question: What was searched for.
      genes: The candidates in the order in which the search looked at them.

    Returns:
      Percentage points, 0 or more; infinite as long as no candidate was within the budget.
    """
    best = _judged(question, every(question)).max()
    seen = np.where(question.allowed(genes), question.accuracy(genes), -np.inf)
    highest = np.maximum.accumulate(seen)
    new = np.concatenate([[True], highest[1:] > highest[:-1]])  # the first of equal ones stays
    choice = np.maximum.accumulate(np.where(new, np.arange(len(genes)), 0))
    lost = best - _judged(question, genes[choice])
    return np.where(np.isfinite(highest), lost, np.inf)


def _judged(question: Question, genes: np.ndarray) -> np.ndarray:
    """The mean accuracy of the trainings that judge."""
    each = [question._replace(seed=seed).accuracy(genes) for seed in question.judges]
    return np.mean(each, axis=0)
