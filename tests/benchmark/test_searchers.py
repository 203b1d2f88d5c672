"""Searches on a benchmark of drawn figures, against brute force."""

import itertools

import numpy as np
import pytest

from qnas_jax.benchmark import Benchmark, Question, every, nsr_search, random_search, regret
from qnas_jax.errors import InputError
from qnas_jax.space import Block, Op, Space

BLOCKS = (Block(4, 4, 1, 1, 1), Block(4, 8, 2, 1, 1), Block(8, 8, 1, 1, 1))


@pytest.fixture(scope="module")
def found():
    rng = np.random.default_rng(0)
    right = rng.integers(0, 100, (8, 2, 27), dtype=np.uint16)
    nsr, cost = rng.random((3, 2, 4), np.float32), rng.random((3, 2, 3))
    space = Space(BLOCKS, (Op(3, 2), Op(5, 4)))
    floats = right[:, :, 0]
    return Benchmark(space, (8, 4, 2), 100, right, floats, 90, nsr, {"ms": cost}, {"ms": 0.5})


def brute(found, budget):
    """(accuracy, NSR, genes) of each candidate within the budget, one by one."""
    for genes in itertools.product((0, 1), (0, 1), (0, 1), *[(0, 1, 2)] * 3):
        ops, bits = genes[:3], genes[3:]
        cost = 0.5 + sum(
            found.cost_tables["ms"][b, o, w] for b, o, w in zip(range(3), ops, bits, strict=True)
        )
        nsr = sum(found.nsr[b, o, 1 + w] for b, o, w in zip(range(3), ops, bits, strict=True))
        network = 4 * ops[0] + 2 * ops[1] + ops[2]
        right = found.right[network, :, 9 * bits[0] + 3 * bits[1] + bits[2]]
        if cost <= budget:
            yield right, nsr, genes


def test_every_candidate_within_the_budget_is_there(found):
    question = Question(found, "ms", 2.0)
    genes = every(question)
    assert sorted(map(tuple, genes)) == sorted(each for *_, each in brute(found, 2.0))
    assert 0 < len(genes) < 8 * 27


def test_random_search_looks_at_different_candidates_within_the_budget(found):
    question = Question(found, "ms", 2.0)
    genes = random_search(3, question, 20)
    assert len(np.unique(genes, axis=0)) == 20
    assert question.allowed(genes).all()
    np.testing.assert_array_equal(genes, random_search(3, question, 20))


def test_the_first_candidate_by_nsr_is_the_exact_one(found):
    question = Question(found, "ms", 2.0)
    genes = nsr_search(0, question, 5)
    assert tuple(genes[0]) == min(brute(found, 2.0), key=lambda each: each[1])[2]
    assert question.allowed(genes).all()


def test_regret_judges_by_the_other_trainings_what_looked_best_in_one(found):
    question = Question(found, "ms", 2.0, seed=1)
    genes = random_search(0, question, 12)
    others = [seed for seed in range(found.seeds) if seed != 1]
    best = max(right[others].mean() for right, *_ in brute(found, 2.0))
    known = {tuple(each): right for right, _, each in brute(found, 2.0)}
    expected = []
    for count in range(1, 13):
        choice = max(genes[:count], key=lambda each: known[tuple(each)][1])
        expected.append(best - known[tuple(choice)][others].mean())
    np.testing.assert_allclose(regret(question, genes), expected, atol=1e-9)


def test_candidates_beyond_the_budget_are_no_choice(found):
    question = Question(found, "ms", 2.0)
    inside, outside = every(question), every(question._replace(budget=9.0))
    outside = outside[~question.allowed(outside)]
    lost = regret(question, np.stack([outside[0], inside[0], outside[1]]))
    assert lost[0] == np.inf
    assert lost[1] == lost[2] < np.inf


def test_all_candidates_leave_no_regret(found):
    question = Question(found, "ms", 2.0)
    assert regret(question, every(question))[-1] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cost": "mj"}, r"cost='mj': must be one of ms"),
        ({"budget": 0.5}, r"budget=0.5: the least ms is"),
        ({"budget": float("nan")}, r"budget=nan: the least ms is"),
        ({"seed": 2}, r"seed=2: must be None or lie in \[0, 1\]"),
    ],
)
def test_what_cannot_be_asked_is_refused(found, changes, message):
    with pytest.raises(InputError, match=message):
        every(Question(found, "ms", 2.0)._replace(**changes))


@pytest.mark.parametrize(
    ("ops", "bits", "seed", "message"),
    [
        ([0, 0], [0, 0], None, r"ops of the shape \(2,\): the last axis must be 3"),
        ([0, 0, -1], [0, 0, 0], None, r"ops: places must lie in \[0, 1\]"),
        ([0, 0, 0], [0, 0, 3], None, r"bits: places must lie in \[0, 2\]"),
        ([0, 0, 0], [0, 0, 0], -1, r"seed=-1: must be None or lie in \[0, 1\]"),
    ],
)
def test_places_that_do_not_exist_are_refused(found, ops, bits, seed, message):
    with pytest.raises(ValueError, match=message):
        found.accuracy(np.array(ops), np.array(bits), seed)
    if seed is None:
        for method in (found.costs, found.block_nsr):
            with pytest.raises(ValueError, match=message):
                method(np.array(ops), np.array(bits))
