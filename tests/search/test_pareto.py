import itertools

import numpy as np
import pytest

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
