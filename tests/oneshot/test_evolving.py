"""Searches with a score that is a formula: fast, and its best subnets are known."""

import itertools

import jax
import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.oneshot import coding, evolving
from qnas_jax.oneshot.evolving import NO_BUDGET, Scored, Searched
from small_oneshot import BLOCKS

BITS = ((4, 4), (6, 6), (8, 8))
OPS = (space.Op(3, 3), space.Op(3, 6), space.Op(5, 6))
CODED = coding.Coding(space.Space(BLOCKS, OPS), BITS, per_layer=True)
WEIGHTS = np.array([3.0, 1.0, 2.0, 1.0, 2.0, 4.0])


def given(budget=NO_BUDGET):
    """A gene costs as much as its number, and 10 for all else."""
    layers = np.arange(3.0)[:, None] + np.arange(3.0)
    costs = coding.Costs(np.broadcast_to(layers, (3, 3, 3)), 10.0)
    return Searched(CODED, costs, budget, np.zeros(6, np.int64))


def accuracies(genes):
    return 50 + genes @ WEIGHTS


EVERY = np.array(list(itertools.product(range(3), repeat=6)))


def test_evolution_finds_the_best_within_its_budget():
    tried = evolving.evolved(jax.random.key(0), accuracies, given(14.0), 150)
    costs = 10 + tried.genes.sum(1)
    assert len(tried.genes) == len(np.unique(tried.genes, axis=0)) == 150
    assert (costs <= 14).all()
    np.testing.assert_array_equal(tried.accuracy, accuracies(tried.genes))
    assert tried.accuracy.max() == accuracies(EVERY[EVERY.sum(1) <= 4]).max()


@pytest.mark.parametrize("budget", [10.0, 11.0])
def test_a_budget_that_few_meet_is_searched_to_the_end(budget):
    tried = evolving.evolved(jax.random.key(0), accuracies, given(budget), 200)
    assert len(tried.genes) == (EVERY.sum(1) <= budget - 10).sum()


@pytest.mark.parametrize("search", [evolving.evolved, evolving.spread_out])
def test_a_search_scores_as_many_as_it_may_and_the_same_again(search):
    first, second = (search(jax.random.key(3), accuracies, given(), 77) for _ in range(2))
    assert len(first.genes) == 77
    np.testing.assert_array_equal(first.genes, second.genes)
    other = search(jax.random.key(4), accuracies, given(), 77)
    assert (other.genes != first.genes).any()
    assert len(search(jax.random.key(0), accuracies, given(), 5).genes) == 5


def test_nsga2_finds_the_front():
    tried = evolving.spread_out(jax.random.key(0), accuracies, given(), 400)
    sums, values = EVERY.sum(1), accuracies(EVERY)
    best = [values[sums == total].max() for total in range(13)]
    found = [tried.accuracy[tried.genes.sum(1) == total].max(initial=0) for total in range(13)]
    assert np.mean(np.array(found) == best) > 0.8


def test_the_chosen_are_the_best_or_spread_over_the_front():
    pairs = [(10, 50), (11, 60), (12, 55), (13, 70), (14, 71), (20, 80), (21, 80)]
    scored = [Scored((), float(cost), float(accuracy)) for cost, accuracy in pairs]
    assert evolving.best(scored).cost == 20
    assert [one.cost for one in evolving.spread(scored, 3)] == [10, 14, 20]
    assert [one.cost for one in evolving.spread(scored, 9)] == [10, 11, 13, 14, 20]
    assert [one.cost for one in evolving.spread(scored[:1], 3)] == [10]
