import dataclasses
import itertools

import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.bwnas.lut import table
from qnas_jax.errors import InputError
from qnas_jax.search import front

SEARCHED = space.Space(
    blocks=tuple(space.Block(8, 8, 1, 1, depth) for depth in (2, 1, 2)),
    ops=(space.Op(3, 2), space.Op(5, 3)),
)
BITS = ((8, 8), (4, 6))
STEM, HEAD = 1000, 50_000


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
    return front.search(rows, STEM, HEAD), list(all_subnets(rows))


def test_the_front_is_that_of_all_subnets(case):
    points, everything = case
    pairs = {(nsr, size) for nsr, size, _ in everything}
    expected = {
        (nsr, size)
        for nsr, size in pairs
        if not any(n <= nsr and s <= size and (n, s) != (nsr, size) for n, s in pairs)
    }
    assert len(points) > 3
    assert [(point.nsr, point.size_bytes) for point in points] == sorted(expected)
    assert [point.rank for point in points] == list(range(len(points)))
    by_text = {text: (nsr, size) for nsr, size, text in everything}
    for point in points:
        assert by_text[point.subnet] == (point.nsr, point.size_bytes)
        assert point.size_bytes - point.encoder_size_bytes == HEAD


def test_the_best_under_a_budget_is_the_best_of_all_subnets_that_fit(case):
    points, everything = case
    sizes = sorted({size for _, size, _ in everything})
    for budget in (*sizes, sizes[-1] + 1000):
        best = front.best_under(points, {"size_bytes": budget})
        assert best.size_bytes <= budget
        assert best.nsr == min(nsr for nsr, size, _ in everything if size <= budget)


def test_a_budget_below_the_smallest_subnet_is_refused_with_its_size(case):
    points, everything = case
    smallest = min(size for _, size, _ in everything)
    with pytest.raises(InputError) as error:
        front.best_under(points, {"size_bytes": smallest - 1})
    expected = f"a budget of {smallest - 1} bytes: the smallest subnet has {smallest}"
    assert str(error.value) == expected


COSTS = ("size_bytes", "latency_ms", "energy_mj")
FIXED = {"latency_ms": 2.5, "energy_mj": 0.25}


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
            costs = (STEM + HEAD + size, ms + FIXED["latency_ms"], mj + FIXED["energy_mj"])
            everything.append((nsr, *costs))
    return rows, np.array(everything)


def values(points, costs=COSTS):
    return np.array([[point.nsr, *(getattr(point, name) for name in costs)] for point in points])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_front_of_several_costs_is_that_of_all_subnets(costly, count):
    rows, everything = costly
    for costs in itertools.combinations(COSTS, count):
        points = front.search(rows, STEM, HEAD, costs, FIXED)
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
        points = front.search(rows, STEM, HEAD, COSTS, FIXED, epsilon)
        for cost in COSTS:
            alone = front.search(rows, STEM, HEAD, (cost,), FIXED)
            pair = front.pair(points, cost)
            assert set(pair) <= set(points)
            np.testing.assert_array_equal(values(pair, (cost,)), values(alone, (cost,)))
            spread = front.spread(points, 4, cost)
            assert set(spread) <= set(pair)
            assert {spread[0], spread[-1]} == {pair[0], pair[-1]}


def test_within_epsilon_of_every_subnet_there_is_one_on_the_front(costly):
    rows, everything = costly
    exact = front.search(rows, STEM, HEAD, COSTS, FIXED)
    points = front.search(rows, 0, 0, COSTS, dict.fromkeys(FIXED, 0.0), 0.3)
    assert len(points) < len(exact)
    fixed = np.array([0, STEM + HEAD, FIXED["latency_ms"], FIXED["energy_mj"]])
    near = values(points)[None] <= 1.3 * (1 + 1e-12) * (everything - fixed)[:, None]
    assert near.all(2).any(1).all()


def test_within_epsilon_several_budgets_are_met_nearly_as_well_as_tighter_ones_can_be(costly):
    rows, everything = costly
    points = front.search(rows, STEM, HEAD, COSTS, FIXED, 0.3)
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
    points = front.search(rows, STEM, HEAD, COSTS, FIXED)
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


def test_budgets_that_cannot_be_met_are_refused_with_what_there_is():
    points = [
        front.Point(0, 1.0, 1500, 900, "a", 2.5, 9.0),
        front.Point(1, 2.0, 1200, 800, "b", 4.0, 7.25),
    ]
    cases = [
        ({"latency_ms": 2.0}, "a budget of 2 ms: the fastest subnet takes 2.5"),
        ({"energy_mj": 7}, "a budget of 7 mJ: the thriftiest subnet takes 7.25"),
        (
            {"size_bytes": 1200, "latency_ms": 2.0},
            "a budget of 2 ms: the fastest subnet takes 2.5",
        ),
        (
            {"size_bytes": 1200, "latency_ms": 3.5},
            "budgets of 1200 bytes and 3.5 ms: no subnet meets all; "
            "the nearest has 1200 bytes and 4 ms",
        ),
    ]
    for budgets, message in cases:
        with pytest.raises(InputError) as error:
            front.best_under(points, budgets)
        assert str(error.value) == message
    assert front.within(points, {}) == points


def test_a_front_with_costs_is_read_as_it_was_written(costly, tmp_path):
    rows, _ = costly
    points = front.search(rows, STEM, HEAD, COSTS, FIXED)
    front.write(tmp_path / "front.csv", points)
    assert front.read(tmp_path / "front.csv") == points
    header = (tmp_path / "front.csv").read_text().splitlines()[0]
    assert header == "rank,nsr,size_bytes,encoder_size_bytes,latency_ms,energy_mj,subnet"
    one_cost = [point._replace(energy_mj=None) for point in points]
    front.write(tmp_path / "front.csv", one_cost)
    assert front.read(tmp_path / "front.csv") == one_cost
    assert "energy" not in (tmp_path / "front.csv").read_text()


def test_a_block_that_failed_as_a_whole_is_told():
    rows = random_table(0)
    rows.nsr[rows.rows_of(1)] = np.inf
    with pytest.raises(InputError, match="has a block without any finite NSR"):
        front.search(rows, STEM, HEAD)


def points_of(sizes):
    return [front.Point(i, 0.1 * i, s, s - 10, f"subnet{i}") for i, s in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "count", "picked"),
    [
        (range(100, -1, -5), 5, [100, 75, 50, 25, 0]),
        ([100, 90, 85, 80, 20, 10, 0], 3, [100, 80, 0]),  # 50: 80 and 20 are as near; the first
        ([100, 99, 98, 97, 0], 4, [100, 98, 97, 0]),  # 33, 67: each point only once
        ([7, 5, 3], 9, [7, 5, 3]),
        ([7], 5, [7]),
    ],
)
def test_subnets_to_retrain_are_spread_by_size(sizes, count, picked):
    found = front.spread(points_of(list(sizes)), count)
    assert [point.size_bytes for point in found] == picked
    assert [point.rank for point in found] == sorted(point.rank for point in found)


def test_a_front_is_read_as_it_was_written(case, tmp_path):
    points, _ = case
    points = [point._replace(nsr=point.nsr / 3) for point in points]  # no short decimals
    front.write(tmp_path / "search" / "front.csv", points)
    assert front.read(tmp_path / "search" / "front.csv") == points
    lines = (tmp_path / "search" / "front.csv").read_text().splitlines()
    assert lines[0] == "rank,nsr,size_bytes,encoder_size_bytes,subnet"
    assert len(lines) == 1 + len(points)
    saved = "\ufeff" + "\r\n".join([*(f"{line}," for line in lines), ",,", ""])  # a spreadsheet
    (tmp_path / "search" / "front.csv").write_bytes(saved.encode())
    assert front.read(tmp_path / "search" / "front.csv") == points


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"rank,nsr\n0,0.5\n",
        b"rank,nsr,size_bytes,encoder_size_bytes,subnet\n0,low,1,1,k3e6.w8a8\n",
        b"rank,nsr,size_bytes,encoder_size_bytes,subnet\n0,0.5\n",
        b"\xff\xfe\n\n",
    ],
    ids=["missing", "columns", "number", "short", "binary"],
)
def test_what_is_no_front_is_named_in_one_line(tmp_path, content):
    file = tmp_path / "front.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError) as error:
        front.read(file)
    state = "is missing" if content is None else "cannot be read ("
    assert str(error.value).startswith(f"{file}: {state}")
    assert "\n" not in str(error.value)
