import itertools

import numpy as np
import pytest

from qnas_jax.errors import InputError
from qnas_jax.search import pareto

TABLE_1 = tuple(6**depth for depth in (3, 3, 4, 4, 3, 1))


def random_tables(rng):
    """Up to four blocks of few small integers, so that ties abound; some rows have failed."""
    objectives = int(rng.integers(2, 5))
    tables = []
    for _ in range(rng.integers(1, 5)):
        table = rng.integers(0, 6, (rng.integers(1, 6), objectives)).astype(float)
        failed = rng.random(table.shape) < 0.04
        table[failed] = rng.choice([np.nan, np.inf, -np.inf], failed.sum())
        tables.append(table)
    return tables


def brute_front(tables):
    """The objectives of all combinations that no other dominates, each once."""
    sums = set()
    for rows in itertools.product(*(table.tolist() for table in tables)):
        total = tuple(map(sum, zip(*rows, strict=True)))
        if np.isfinite(total).all():
            sums.add(total)
    points = np.array(sorted(sums)).reshape(len(sums), tables[0].shape[1])
    no_worse = (points[:, None] <= points[None]).all(-1)  # [i, j]: i is no worse than j
    np.fill_diagonal(no_worse, False)
    return points[~no_worse.any(0)]


def test_the_folded_front_is_that_of_all_combinations():
    rng, mismatches, empty, sizes = np.random.default_rng(0), 0, 0, []
    for _ in range(200):
        tables = random_tables(rng)
        front = pareto.pareto_front(tables)
        expected = brute_front(tables)
        found = front.objectives[np.lexsort(front.objectives.T[::-1])]
        mismatches += not np.array_equal(found, expected)
        totals = sum(table[rows] for table, rows in zip(tables, front.rows.T, strict=True))
        mismatches += not np.array_equal(front.objectives, totals)
        mismatches += bool((np.diff(front.objectives[:, 0]) < 0).any())
        empty += not len(expected)
        sizes.append(len(expected))
    assert mismatches == 0
    assert 0 < empty < 100, "some cases have a block without a finite row"
    assert max(sizes) > 15


def test_the_order_of_blocks_and_rows_changes_no_front():
    rng = np.random.default_rng(1)
    tables = [rng.integers(0, 9, (8, 3)).astype(float) for _ in range(4)]
    expected = pareto.pareto_front(tables).objectives
    shuffled = [rng.permutation(tables[block]) for block in rng.permutation(4)]
    found = pareto.pareto_front(shuffled).objectives
    assert len(expected) > 10
    assert set(map(tuple, found.tolist())) == set(map(tuple, expected.tolist()))


def best_within(tables, budget):
    """The lowest sum of the first objective at each sum of the second, by dynamic programming."""
    best = np.where(np.arange(budget + 1) == 0, 0.0, np.inf)
    for table in tables:
        after = np.full_like(best, np.inf)
        for value, cost in table:
            cost = int(cost)
            after[cost:] = np.minimum(after[cost:], best[: len(best) - cost] + value)
        best = after
    return np.minimum.accumulate(best)


def test_a_table_as_large_as_the_papers_gives_its_exact_front():
    rng = np.random.default_rng(2)
    tables = []
    for rows in TABLE_1:
        size = rng.integers(20, 200, rows)
        nsr = np.round(1e5 / size * rng.uniform(0.7, 1.3, rows))  # whole: sums are exact
        tables.append(np.stack([nsr, size], axis=1))
    front = pareto.pareto_front(tables)
    best = best_within(tables, 6 * 200)
    steps = np.flatnonzero(best < np.append(np.inf, best[:-1]))  # where it gets better
    assert len(front) > 50
    assert front.objectives[::-1, 1].tolist() == steps.tolist()
    assert front.objectives[::-1, 0].tolist() == best[steps].tolist()


def test_every_weighting_of_the_objectives_has_its_best_on_the_front():
    rng = np.random.default_rng(3)
    tables = [rng.random((6**3, 3)) for _ in range(2)]
    front = pareto.pareto_front(tables).objectives
    for weights in rng.dirichlet(np.ones(3), 50):
        expected = sum((table @ weights).min() for table in tables)
        assert (front @ weights).min() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("objectives", [2, 3])
def test_of_equal_points_the_first_is_kept_and_broken_ones_never(objectives):
    points = [(2, 1), (np.nan, 0), (1, 2), (2, 1), (1, 2), (0, np.inf), (-np.inf, 0), (2, 2)]
    array = np.array([(*point, 0)[:objectives] for point in points], float)
    assert pareto.non_dominated(array).tolist() == [2, 0]


def test_two_objectives_and_a_third_that_is_always_the_same_give_one_front():
    rng = np.random.default_rng(4)
    for _ in range(50):
        points = rng.integers(0, 12, (40, 2)).astype(float)
        three = np.concatenate([points, np.full((40, 1), 7.0)], axis=1)
        np.testing.assert_array_equal(pareto.non_dominated(points), pareto.non_dominated(three))


@pytest.mark.parametrize("objectives", [2, 3])
def test_a_block_without_a_finite_row_leaves_an_empty_front(objectives):
    fine = np.ones((3, objectives))
    for tables in ([fine, fine * np.nan, fine], [np.zeros((0, objectives)), fine]):
        front = pareto.pareto_front(tables)
        assert len(front) == 0
        assert front.objectives.shape == (0, objectives)
        assert front.rows.shape == (0, len(tables))


def plain_front(points):
    """Indices of the first of each non-dominated point, by comparing every pair."""
    finite = [i for i, point in enumerate(points) if np.isfinite(point).all()]
    found = []
    for i in finite:
        no_worse = (points[finite] <= points[i]).all(1)
        equal = (points[finite] == points[i]).all(1)
        first = finite[int(np.argmax(equal))] == i
        if first and not (no_worse & ~equal).any():
            found.append(i)
    return found


@pytest.mark.parametrize("objectives", [2, 3, 4, 5])
def test_large_sets_are_divided_without_losing_or_adding_a_point(objectives):
    rng = np.random.default_rng(objectives)
    for values in (3, 12, 1000, 10**9):  # from ties everywhere to none
        points = rng.integers(0, values, (700, objectives)).astype(float)
        points[:, -1] += values * objectives - points.sum(1) // 2  # few dominate each other
        points[rng.random(points.shape) < 0.01] = rng.choice([np.nan, np.inf, -np.inf])
        found = pareto.non_dominated(points)
        assert sorted(found.tolist()) == plain_front(points)
        kept = points[found]
        assert (np.lexsort(kept.T[::-1]) == np.arange(len(kept))).all()


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_points_are_covered_by_what_is_no_worse_everywhere(objectives):
    rng = np.random.default_rng(objectives)
    for values, of in itertools.product((1, 4, 10**6), (0, 1, 300)):
        by = rng.integers(0, values, (of, objectives)).astype(float)
        points = rng.integers(0, values, (400, objectives)).astype(float)
        expected = (by[None] <= points[:, None]).all(2).any(1)
        np.testing.assert_array_equal(pareto.covered(by, points), expected)


@pytest.mark.parametrize("epsilon", [0.0, 0.02])
def test_sums_formed_few_at_a_time_give_the_same_front(monkeypatch, epsilon):
    rng = np.random.default_rng(5)
    tables = [rng.integers(1, 30, (20, 3)).astype(float) for _ in range(4)]
    whole = pareto.pareto_front(tables, epsilon)
    monkeypatch.setattr(pareto, "SUMS_AT_ONCE", 50)
    found = pareto.pareto_front(tables, epsilon)
    if epsilon:
        assert len(found) > 50
        assert (all_within(found.objectives, whole.objectives, 1 + epsilon)).all()
    else:
        np.testing.assert_array_equal(found.objectives, whole.objectives)
        np.testing.assert_array_equal(found.rows, whole.rows)


def all_within(front, points, factor):
    """For each point, whether the front has one at most `factor` times as high everywhere."""
    rounding = 1 + 1e-12
    return (front[None] <= factor * rounding * points[:, None]).all(2).any(1)


@pytest.mark.parametrize("objectives", [2, 3, 4])
@pytest.mark.parametrize("epsilon", [1e-3, 0.05, 0.5, 5.0])
def test_within_epsilon_of_every_sum_there_is_a_point_on_a_smaller_front(objectives, epsilon):
    rng = np.random.default_rng(objectives)
    tables = []
    for _ in range(4):
        table = np.exp(rng.normal(0, 1, (9, objectives)))  # over orders of magnitude
        table[rng.random(table.shape) < 0.05] = 0.0
        tables.append(table)
    exact = pareto.pareto_front(tables)
    found = pareto.pareto_front(tables, epsilon)
    combinations = itertools.product(*(table.tolist() for table in tables))
    sums = np.array([np.sum(rows, axis=0) for rows in combinations])
    assert all_within(found.objectives, sums, 1 + epsilon).all()
    np.testing.assert_allclose(found.objectives.min(0), sums.min(0), rtol=1e-12)
    assert len(found) <= len(exact)
    if epsilon >= 0.5 and objectives > 2:
        assert len(found) < 0.7 * len(exact)
        assert not all_within(found.objectives, sums, 1 + epsilon / 100).all(), "no slack at all"
    assert pareto.non_dominated(found.objectives).tolist() == list(range(len(found)))
    totals = sum(table[rows] for table, rows in zip(tables, found.rows.T, strict=True))
    np.testing.assert_array_equal(found.objectives, totals)


def test_a_front_too_large_is_told_with_the_setting_that_helps():
    rng = np.random.default_rng(6)
    tables = [rng.dirichlet(np.ones(3), 30) for _ in range(3)]
    with pytest.raises(InputError) as error:
        pareto.pareto_front(tables, most_points=100)
    expected = "search.epsilon=0: a front of more than 100 points at block 2 of 3; "
    assert str(error.value) == expected + "set 0.01, or fewer search.costs"
    with pytest.raises(InputError, match=r"epsilon=0\.04: .*; set 0\.08, or"):
        pareto.pareto_front(tables, epsilon=0.04, most_points=5)
    assert len(pareto.pareto_front(tables, epsilon=0.5, most_points=1000)) > 100
