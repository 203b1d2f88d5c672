"""The front of a table, against all of its subnets one by one."""

import dataclasses
import itertools

import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.bwnas import search_front
from qnas_jax.bwnas.lut import table
from qnas_jax.errors import InputError
from qnas_jax.search import front

SEARCHED = space.Space(
    blocks=tuple(space.Block(8, 8, 1, 1, depth) for depth in (2, 1, 2)),
    ops=(space.Op(3, 2), space.Op(5, 3)),
)
BITS = ((8, 8), (4, 6))
STEM, HEAD = 1000, 50_000
FIXED = {
    "size_bytes": {"stem": STEM, "head": HEAD},
    "latency_ms": {"stem": 0.5, "head": 2.0},
    "energy_mj": {"stem": 0.0, "head": 0.25},
}
FIXED_MS, FIXED_MJ = 2.5, 0.25


def random_table(seed):
    parts = table.parts_of(SEARCHED, BITS, per_layer=False)
    rng = np.random.default_rng(seed)
    size = rng.integers(10, 60, sum(part.rows for part in parts))
    nsr = (rng.integers(500, 1500, len(size)) // size / 64).astype(np.float32)  # sums are exact
    nsr[rng.random(len(size)) < 0.1] = np.nan
    return dataclasses.replace(table.build(nsr, SEARCHED, parts), costs={"size_bytes": size})


def all_subnets(rows):
    """(nsr, size of the whole network, text) of every subnet whose paths have not failed."""
    for combination in itertools.product(*(rows.rows_of(b) for b in range(rows.blocks))):
        picked = list(combination)
        if np.isfinite(rows.nsr[picked]).all():
            nsr = float(rows.nsr[picked].astype(np.float64).sum())
            size = STEM + HEAD + int(rows.costs["size_bytes"][picked].sum())
            yield nsr, size, space.format_subnet(tuple(rows.choices(row) for row in picked))


@pytest.fixture(scope="module", params=range(3))
def case(request):
    rows = random_table(request.param)
    return search_front.search(rows, FIXED), list(all_subnets(rows))


def test_the_front_is_that_of_all_subnets(case):
    points, everything = case
    pairs = {(nsr, size) for nsr, size, _ in everything}
    expected = {
        (nsr, size)
        for nsr, size in pairs
        if not any(n <= nsr and s <= size and (n, s) != (nsr, size) for n, s in pairs)
    }
    assert len(points) > 3
    assert [(point.nsr, point.costs["size_bytes"]) for point in points] == sorted(expected)
    assert [point.rank for point in points] == list(range(len(points)))
    by_text = {text: (nsr, size) for nsr, size, text in everything}
    for point in points:
        assert by_text[point.subnet] == (point.nsr, point.costs["size_bytes"])
        assert point.costs["size_bytes"] - point.costs["encoder_size_bytes"] == HEAD


def test_the_best_under_a_budget_is_the_best_of_all_subnets_that_fit(case):
    points, everything = case
    sizes = sorted({size for _, size, _ in everything})
    for budget in (*sizes, sizes[-1] + 1000):
        best = front.best_under(points, {"size_bytes": budget})
        assert best.costs["size_bytes"] <= budget
        assert best.nsr == min(nsr for nsr, size, _ in everything if size <= budget)


def test_a_budget_below_the_smallest_subnet_is_refused_with_its_size(case):
    points, everything = case
    smallest = min(size for _, size, _ in everything)
    with pytest.raises(InputError) as error:
        front.best_under(points, {"size_bytes": smallest - 1})
    expected = f"a budget of {smallest - 1} bytes: the smallest subnet has {smallest}"
    assert str(error.value) == expected


COSTS = ("size_bytes", "latency_ms", "energy_mj")


@pytest.fixture(scope="module", params=range(3))
def costly(request):
    """A table with three costs, all sums of which are exact, and its subnets."""
    rows = random_table(request.param)
    rng = np.random.default_rng(100 + request.param)
    for name in COSTS[1:]:
        rows.costs[name] = rng.integers(1, 40, len(rows.nsr)) / 8
    everything = []
    for combination in itertools.product(*(rows.rows_of(b) for b in range(rows.blocks))):
        picked = list(combination)
        nsr = float(rows.nsr[picked].astype(np.float64).sum())
        if np.isfinite(nsr):
            size, ms, mj = (float(rows.costs[name][picked].sum()) for name in COSTS)
            costs = (STEM + HEAD + size, ms + FIXED_MS, mj + FIXED_MJ)
            everything.append((nsr, *costs))
    return rows, np.array(everything)


def values(points, costs=COSTS):
    return np.array([[point.nsr, *(point.costs[name] for name in costs)] for point in points])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_front_of_several_costs_is_that_of_all_subnets(costly, count):
    rows, everything = costly
    for costs in itertools.combinations(COSTS, count):
        points = search_front.search(rows, FIXED, costs)
        columns = everything[:, [0, *(1 + COSTS.index(name) for name in costs)]]
        beaten = [
            ((columns <= one).all(1) & (columns < one).any(1)).any() for one in columns
        ]  # fmt: skip
        expected = np.unique(columns[~np.array(beaten)], axis=0)
        found = values(points, costs)
        np.testing.assert_array_equal(found[np.lexsort(found.T[::-1])], expected)
        totals = {tuple(one) for one in everything.tolist()}
        assert all(tuple(one) in totals for one in values(points).tolist()), "all columns are known"


def test_a_front_of_several_costs_holds_those_of_each(costly):
    rows, _ = costly
    for epsilon in (0.0, 0.3):
        points = search_front.search(rows, FIXED, COSTS, epsilon)
        for cost in COSTS:
            alone = search_front.search(rows, FIXED, (cost,))
            pair = front.pair(points, cost)
            assert all(point in points for point in pair)
            np.testing.assert_array_equal(values(pair, (cost,)), values(alone, (cost,)))
            spread = front.spread(points, 4, cost)
            assert all(point in pair for point in spread)
            assert [spread[0], spread[-1]] == [pair[0], pair[-1]]


def test_within_epsilon_of_every_subnet_there_is_one_on_the_front(costly):
    rows, everything = costly
    exact = search_front.search(rows, FIXED, COSTS)
    points = search_front.search(rows, {}, COSTS, 0.3)
    assert len(points) < len(exact)
    fixed = np.array([0, STEM + HEAD, FIXED_MS, FIXED_MJ])
    near = values(points)[None] <= 1.3 * (1 + 1e-12) * (everything - fixed)[:, None]
    assert near.all(2).any(1).all()


def test_within_epsilon_several_budgets_are_met_nearly_as_well_as_tighter_ones_can_be(costly):
    rows, everything = costly
    points = search_front.search(rows, FIXED, COSTS, 0.3)
    tried = 0
    for low in np.quantile(everything[:, 1:], (0.02, 0.1, 0.3, 0.6), axis=0):
        fit = everything[(everything[:, 1:] <= low).all(1), 0]
        if len(fit):
            budgets = dict(zip(COSTS, (1.3 * low).tolist(), strict=True))
            assert front.best_under(points, budgets).nsr <= 1.3 * fit.min()
            tried += 1
    assert tried


def test_the_best_within_several_budgets_is_the_best_of_all_subnets_that_meet_all(costly):
    rows, everything = costly
    points = search_front.search(rows, FIXED, COSTS)
    rng = np.random.default_rng(0)
    met = 0
    for _ in range(60):
        names = rng.permutation(COSTS)[: rng.integers(1, 4)].tolist()
        columns = [1 + COSTS.index(name) for name in names]
        quarter = np.sort(everything, axis=0)[: len(everything) // 4]
        limits = [float(rng.choice(quarter[:, column])) for column in columns]
        budgets = dict(zip(names, limits, strict=True))
        fit = (everything[:, columns] <= limits).all(1)
        if fit.any():
            assert front.best_under(points, budgets).nsr == everything[fit, 0].min()
            met += 1
        else:
            with pytest.raises(InputError, match="no subnet meets all; the nearest has"):
                front.best_under(points, budgets)
    assert 10 < met < 60


def test_a_block_that_failed_as_a_whole_is_told():
    rows = random_table(0)
    rows.nsr[rows.rows_of(1)] = np.inf
    with pytest.raises(InputError, match="has a block without any finite NSR"):
        search_front.search(rows, FIXED)
