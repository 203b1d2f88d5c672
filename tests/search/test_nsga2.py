import itertools

import jax
import numpy as np
import pytest

from qnas_jax.search import evolution, nsga2, pareto
from qnas_jax.search.nsga2 import NSGA2
from qnas_jax.search.ranking import hypervolume

KEY = jax.random.key(0)


def plain_ranks(points):
    """Fronts peeled off one by one, every pair compared."""
    left, ranks, rank = list(range(len(points))), [None] * len(points), 0
    while left:
        front = []
        for i in left:
            beaten = False
            for j in left:
                no_worse = all(a <= b for a, b in zip(points[j], points[i], strict=True))
                better = any(a < b for a, b in zip(points[j], points[i], strict=True))
                beaten |= no_worse and better
            if not beaten:
                front.append(i)
        for i in front:
            ranks[i] = rank
        left = [i for i in left if i not in front]
        rank += 1
    return ranks


def plain_crowding(points):
    """The paper's crowding-distance-assignment, line by line; an objective without span is none."""
    found = [0.0] * len(points)
    for m in range(len(points[0])):
        order = sorted(range(len(points)), key=lambda i: points[i][m])
        span = points[order[-1]][m] - points[order[0]][m]
        if span == 0:
            continue
        found[order[0]] = found[order[-1]] = float("inf")
        for k in range(1, len(order) - 1):
            found[order[k]] += (points[order[k + 1]][m] - points[order[k - 1]][m]) / span
    return found


@pytest.mark.parametrize("values", [4, 1000])
@pytest.mark.parametrize("objectives", [2, 3])
def test_ranks_and_crowding_are_those_of_the_paper(objectives, values):
    rng = np.random.default_rng(values + objectives)
    for count in (1, 2, 7, 40):
        points = rng.integers(0, values, (count, objectives)).astype(float)
        ranks = nsga2.ranks_of(points)
        assert ranks.tolist() == plain_ranks(points.tolist())
        for rank in set(ranks):
            front = points[ranks == rank]
            expected = plain_crowding(front.tolist())
            np.testing.assert_allclose(nsga2.crowding_of(front), expected, rtol=1e-12)


def test_nothing_has_no_rank_and_what_is_not_finite_is_refused():
    assert nsga2.ranks_of(np.zeros((0, 2))).shape == (0,)
    assert nsga2.crowding_of(np.zeros((0, 2))).shape == (0,)
    for function in (nsga2.ranks_of, nsga2.crowding_of):
        with pytest.raises(ValueError, match="must be finite"):
            function(np.array([[1.0, np.nan]]))


def test_lower_ranks_survive_and_of_the_last_front_the_ends_and_the_least_crowded():
    front = [(0, 10), (1, 8), (1.1, 7.9), (5, 4), (10, 0)]
    worse = [(6, 6), (11, 11)]
    points = np.array(worse + front, float)
    genes = np.arange(7)[:, None]
    state = nsga2.init(genes, points, NSGA2(population=4))
    assert set(state.genes.ravel().tolist()) == {2, 6, 5, 4}
    state = nsga2.init(genes, points, NSGA2(population=6))
    assert state.genes.ravel().tolist()[-1] == 0
    assert state.ranks.tolist() == [0, 0, 0, 0, 0, 1]
    assert np.isinf(state.crowding[:2]).all()
    assert (np.diff(state.crowding[2:5]) <= 0).all()


def test_what_is_not_finite_never_survives():
    genes = np.arange(4)[:, None]
    points = np.array([[1.0, 2.0], [np.nan, 0.0], [-np.inf, 0.0], [2.0, 1.0]])
    state = nsga2.init(genes, points, NSGA2())
    assert sorted(state.genes.ravel().tolist()) == [0, 3]
    state = nsga2.tell(state, genes[1:3] + 10, points[1:3], NSGA2())
    assert sorted(state.genes.ravel().tolist()) == [0, 3]
    assert state.seen.ravel().tolist() == [0, 1, 2, 3, 11, 12]
    assert state.generation == 1
    state = nsga2.init(genes, np.full((4, 2), np.nan), NSGA2())
    with pytest.raises(ValueError, match="no candidate has a finite score"):
        nsga2.ask(KEY, state, NSGA2(), np.zeros(1, int), np.full(1, 99))
    with pytest.raises(ValueError, match="3 scores of 4 candidates"):
        nsga2.init(genes, points[:3], NSGA2())


def test_asking_is_pure_and_children_are_new_and_allowed():
    rng, how = np.random.default_rng(0), NSGA2(population=20)
    least, most = np.zeros((2, 3), int), np.full((2, 3), 5)
    fits = lambda genes: genes.sum((1, 2)) <= 15  # noqa: E731
    first = evolution.random(KEY, 20, least, most, fits)
    state = nsga2.init(first, rng.random((20, 2)), how)
    for _ in range(4):
        one, again = (nsga2.ask(KEY, state, how, least, most, fits) for _ in range(2))
        np.testing.assert_array_equal(one, again)
        assert one.shape == (20, 2, 3)
        assert fits(one).all() and (one >= least).all() and (one <= most).all()
        state = nsga2.tell(state, one, rng.random((20, 2)), how)
    assert len({gene.tobytes() for gene in state.seen}) == len(state.seen) == 100
    assert len(state.genes) == 20


def test_better_ranks_have_more_children():
    genes = np.repeat(np.arange(4), 12)[:, None].repeat(12, 1)
    state = nsga2.init(genes[:1], np.zeros((1, 2)), NSGA2())
    ranks = np.repeat(np.arange(4), 12)
    state = state._replace(genes=genes, ranks=ranks, crowding=np.zeros(48))
    how = NSGA2(population=2000, mutated=0.0)
    children = nsga2.ask(KEY, state, how, np.zeros(12, int), np.full(12, 3))
    # Of four equal groups the tournament of two gives p; parents of one group have no new child.
    p = np.array([7, 5, 3, 1]) / 16
    shares = np.bincount(children.ravel(), minlength=4) / children.size
    np.testing.assert_allclose(shares, p * (1 - p) / (p * (1 - p)).sum(), atol=0.025)


def searched(seed, tables, how, generations):
    """The front that is found, and how many candidates were scored."""
    blocks, rows, _ = tables.shape
    least, most, key = np.zeros(blocks, int), np.full(blocks, rows - 1), jax.random.key(seed)

    def of(genes):
        return tables[np.arange(blocks), genes].sum(1)

    first = evolution.random(key, how.population, least, most)
    state = nsga2.init(first, of(first), how)
    for _ in range(generations):
        children = nsga2.ask(key, state, how, least, most)
        state = nsga2.tell(state, children, of(children), how)
    np.testing.assert_array_equal(state.objectives, of(state.genes))
    return state.objectives[state.ranks == 0], len(state.seen)


def test_it_finds_the_hypervolume_of_the_exact_front():
    for seed in range(5):
        tables = np.random.default_rng(seed).random((3, 5, 2))
        found, scored = searched(seed, tables, NSGA2(population=12), generations=5)
        every = np.array([sum(rows) for rows in itertools.product(*tables)])
        reference = every.max(0)
        assert scored == 72  # of 125
        assert hypervolume(found, reference) >= 0.9 * hypervolume(every, reference)


def test_with_three_objectives_it_finds_more_than_random_search():
    shares = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        tables = rng.random((6, 6, 3))
        found, scored = searched(seed, tables, NSGA2(), generations=10)
        random = tables[np.arange(6), rng.integers(6, size=(scored, 6))].sum(1)
        fronts = (found, random, pareto.pareto_front(list(tables)).objectives)
        shares.append([hypervolume(points, tables.max(1).sum(0)) for points in fronts])
    found, random, exact = np.array(shares).T
    assert (found > 0.85 * exact).all()
    assert (found > random).all()
    assert found.mean() > 1.15 * random.mean()
