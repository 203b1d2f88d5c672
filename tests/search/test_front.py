import dataclasses
import itertools

import numpy as np
import pytest

from qnas_jax import space, table
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
    assert str(error.value).startswith(f"{file}: cannot be read as a front (")
    assert "\n" not in str(error.value)
