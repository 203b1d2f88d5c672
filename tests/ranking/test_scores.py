"""Scores that come from tables alone."""

import itertools

import numpy as np
import pytest

import small_tables
from qnas_jax.metrics import kendall_tau
from qnas_jax.ranking import drawn, scores

PAIRS = ((8, 8), (4, 4))


@pytest.fixture(scope="module")
def rows():
    return small_tables.drawn(PAIRS, noise=0.1)


@pytest.fixture(scope="module")
def subnets(rows):
    places = itertools.product(rows.rows_of(0), rows.rows_of(1))
    every = [drawn.subnet_at(rows, np.array(each)) for each in places]
    return [every[i] for i in np.random.default_rng(0).permutation(len(every))[:30]]


def test_rows_of_subnets_are_found_by_their_choices(rows, subnets):
    found = scores.of_rows(rows, subnets)
    for subnet, values in zip(subnets, found, strict=True):
        for block, (choices, value) in enumerate(zip(subnet, values, strict=True)):
            (row,) = [r for r in rows.rows_of(block) if rows.choices(r) == choices]
            assert value == rows.nsr[row]


def test_a_table_in_float_is_read_whatever_the_bitwidths(subnets):
    plain = small_tables.drawn(((scores.FLOAT_BITS,) * 2,), noise=0.1)
    found = scores.of_rows(plain, subnets)
    for subnet, values in zip(subnets, found, strict=True):
        for block, (choices, value) in enumerate(zip(subnet, values, strict=True)):
            ops = tuple(choice.op for choice in choices)
            (row,) = [
                r for r in plain.rows_of(block) if tuple(c.op for c in plain.choices(r)) == ops
            ]
            assert value == plain.nsr[row]


def test_the_network_learns_what_the_bits_add_to_the_table_in_float(rows, subnets):
    plain = small_tables.drawn(((scores.FLOAT_BITS,) * 2,), noise=0.0)
    four = np.array([np.mean([c.w_bits == 4 for b in subnet for c in b]) for subnet in subnets])
    truth = 60 - 5 * scores.of_rows(plain, subnets).sum(1) - 4 * four
    found = scores.network_predictions(subnets, rows, plain, truth, seed=0)
    assert not found.lower_is_better
    in_float = kendall_tau(-scores.of_rows(plain, subnets).sum(1), truth)
    assert kendall_tau(found.values, truth) > max(in_float, 0.6)


def test_weighted_sums_are_predictions_of_the_left_out(rows, subnets):
    noise = scores.of_rows(rows, subnets)
    truth = 50 - noise @ [3.0, 1.0]
    found = scores.predicted("weighted", noise, truth)
    assert not found.lower_is_better
    np.testing.assert_allclose(found.values, truth - truth.mean(), rtol=0.05, atol=0.01)


def test_controls_know_sizes_and_nothing_else():
    found = scores.controls([{"size_bytes": 5, "macs": 9}, {"size_bytes": 7, "macs": 2}], seed=0)
    assert found["size"].values.tolist() == [5, 7]
    assert found["macs"].values.tolist() == [9, 2]
    assert not found["size"].lower_is_better
    assert len(set(found["random"].values)) == 2
