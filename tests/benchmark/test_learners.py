"""Searches that learn, on a benchmark whose accuracies follow its noise."""

import itertools

import numpy as np
import pytest

from qnas_jax.benchmark import LEARNERS, Benchmark, Question, every, random_search, regret
from qnas_jax.space import Block, Op, Space

BLOCKS = tuple(Block(4, 4, 1, 1, 1) for _ in range(3))
OPS = (Op(3, 2), Op(5, 2), Op(3, 4))
BITS = (8, 4, 2)


@pytest.fixture(scope="module")
def found():
    """27 networks under 27 policies; each block's noise has its own weight in the accuracy."""
    rng = np.random.default_rng(0)
    nsr, cost = rng.random((3, 3, 4), np.float32), rng.random((3, 3, 3))
    blocks = np.arange(3)
    right = np.zeros((27, 1, 27), np.uint16)
    for n, ops in enumerate(itertools.product(range(3), repeat=3)):
        for p, bits in enumerate(itertools.product(range(3), repeat=3)):
            noise = nsr[blocks, list(ops), 1 + np.array(bits)]
            right[n, 0, p] = 1000 * (0.95 - 0.2 * noise @ [1.0, 0.1, 2.0] / 3.1)
    space = Space(BLOCKS, OPS)
    return Benchmark(space, BITS, 1000, right, right[:, :, 0], 990, nsr, {"ms": cost}, {"ms": 0.5})


@pytest.fixture(scope="module")
def question(found):
    return Question(found, "ms", 2.2)


@pytest.mark.parametrize("name", LEARNERS)
def test_what_is_looked_at_is_within_the_budget_and_that_of_the_seed(question, name):
    genes = LEARNERS[name](1, question, 60)
    assert genes.shape[1] == 6
    assert len(genes) == 60 or (name == "gradient" and 3 < len(genes) < 60)
    assert question.allowed(genes).all()
    np.testing.assert_array_equal(genes, LEARNERS[name](1, question, 60))
    assert not np.array_equal(genes, LEARNERS[name](2, question, 60))


@pytest.mark.parametrize("name", ["evolution", "predictor", "gradient"])
def test_no_candidate_is_looked_at_twice(question, name):
    genes = LEARNERS[name](1, question, 90)
    assert len(np.unique(genes, axis=0)) == len(genes)


@pytest.mark.parametrize("name", LEARNERS)
def test_learning_is_better_than_drawing(question, name):
    seeds = range(4)
    own = np.mean([regret(question, LEARNERS[name](s, question, 80))[-1] for s in seeds])
    drawn = np.mean([regret(question, random_search(s, question, 80))[-1] for s in seeds])
    assert own < drawn


def test_the_predictor_finds_the_best_where_accuracy_is_a_weighted_sum(question):
    assert regret(question, LEARNERS["predictor"](0, question, 60))[-1] < 0.11  # one image


def test_a_space_that_is_looked_at_whole_ends_every_search(found):
    least = found.cost_tables["ms"].min((1, 2)).sum() + 0.5
    few = Question(found, "ms", least + 0.05)
    for name in ("evolution", "predictor"):
        genes = LEARNERS[name](0, few, 100)
        assert 0 < len(genes) <= 100
        assert regret(few, genes)[-1] == 0


@pytest.mark.parametrize("name", LEARNERS)
def test_the_lowest_budget_has_an_answer(found, name):
    least = Question(found, "ms", found.cost_tables["ms"].min((1, 2)).sum() + 0.5 + 1e-9)
    genes = LEARNERS[name](0, least, 3)
    np.testing.assert_array_equal(np.unique(genes, axis=0), every(least))


def test_logits_find_the_least_noise_within_the_budget(found, question):
    genes = LEARNERS["gradient"](0, question, 10)
    ops, bits = np.split(genes, 2, axis=1)
    every_one = every(question)
    every_ops, every_bits = np.split(every_one, 2, axis=1)
    blocks = np.arange(3)
    least = found.nsr[blocks, every_ops, 1 + every_bits].sum(1).min()
    assert found.nsr[blocks, ops, 1 + bits].sum(1).min() == pytest.approx(least, rel=0.02)


def test_the_agent_first_proposes_the_largest_that_the_budget_allows(found):
    ops, bits = np.split(LEARNERS["agent"](0, Question(found, "ms", 1e9), 1)[0], 2)
    np.testing.assert_array_equal(ops, found.cost_tables["ms"].mean(2).argmax(1))
    np.testing.assert_array_equal(bits, [0, 0, 0])  # 8 bits
