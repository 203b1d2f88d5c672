"""The table in float against that at few bits, by brute force."""

import itertools

import numpy as np
import pytest

import small_tables
from qnas_jax.metrics import kendall_tau
from qnas_jax.ranking import aware

PAIRS = ((8, 8), (3, 3))


@pytest.fixture(scope="module")
def tables():
    plain = small_tables.drawn(((16, 16),), seed=1)
    rows = small_tables.drawn(PAIRS, seed=2)
    return plain, rows, aware.at_bits(rows, (3, 3))


def test_rows_of_a_pair_are_those_of_the_table(tables):
    plain, rows, own = tables
    assert np.array_equal(own.path, plain.path)
    places = [i for i in range(len(rows.nsr)) if rows.w_bits[i, 0] == 3]
    assert np.array_equal(own.nsr, rows.nsr[places])
    assert own.bits == ((3, 3),)


def test_tau_and_regret_of_blocks(tables):
    plain, _, own = tables
    found = aware.compare(plain, own)
    for block, figures in enumerate(found["blocks"]):
        rows = own.rows_of(block)
        a, b, sizes = plain.nsr[rows], own.nsr[rows], own.costs["size_bytes"][rows]
        assert figures["tau"] == pytest.approx(kendall_tau(a, b))
        regrets = []
        for size in sorted(set(sizes)):
            fitting = [i for i in range(len(rows)) if sizes[i] <= size]
            picked = min(fitting, key=lambda i, a=a: a[i])
            regrets.append(b[picked] / min(b[fitting]) - 1)
        assert figures["regret"]["mean"] == pytest.approx(np.mean(regrets), abs=1e-6)
        assert figures["regret"]["most"] == pytest.approx(max(regrets), abs=1e-6)


def test_a_table_that_is_the_same_has_no_regret(tables):
    plain, _, own = tables
    same = aware.compare(own, own)
    assert same["regret"] == {"mean": 0.0, "most": 0.0}
    assert all(block["tau"] == pytest.approx(1) for block in same["blocks"])
    assert aware.compare(plain, own)["regret"]["most"] > 0


def test_picks_are_the_best_of_all_subnets(tables):
    plain, _, own = tables
    found = aware.picks(plain, own)
    sums = []
    for places in itertools.product(own.rows_of(0), own.rows_of(1)):
        places = list(places)
        if own.costs["size_bytes"][places].sum() <= found.budget:
            subnet = tuple(own.choices(row) for row in places)
            sums.append((plain.nsr[places].sum(), own.nsr[places].sum(), subnet))
    assert found.in_float == min(sums)[2]
    assert found.quantized == min(sums, key=lambda row: row[1])[2]


def test_tables_with_other_paths_are_refused(tables):
    plain, rows, _ = tables
    with pytest.raises(ValueError, match="other paths"):
        aware.compare(plain, rows)
