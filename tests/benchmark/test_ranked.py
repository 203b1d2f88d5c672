"""How well scores rank a benchmark, on one whose accuracies are known functions of its noise."""

import dataclasses
import itertools

import numpy as np
import pytest

from qnas_jax.benchmark import Benchmark, ranked
from qnas_jax.metrics import kendall_tau
from qnas_jax.space import Block, Op, Space

BLOCKS = tuple(Block(4, 4, 1, 1, 1) for _ in range(3))
OPS = (Op(3, 2), Op(5, 2), Op(3, 4))
BITS = (8, 4)


@pytest.fixture(scope="module")
def found():
    """27 networks under 8 policies: right answers fall with the sum of the noise."""
    rng = np.random.default_rng(0)
    nsr = rng.random((3, 3, 3), np.float32)
    right = np.zeros((27, 2, 8), np.uint16)
    for n, ops in enumerate(itertools.product(range(3), repeat=3)):
        for p, bits in enumerate(itertools.product(range(2), repeat=3)):
            sums = nsr[np.arange(3), list(ops), 1 + np.array(bits)].sum()
            right[n, :, p] = 30000 * (1 - sums / 4)
    costs = {name: rng.random((3, 3, 2)) for name in ("size_bytes", "macs")}
    fixed = dict.fromkeys(costs, 0.0)
    return Benchmark(Space(BLOCKS, OPS), BITS, 30000, right, right[:, :, 0], 1, nsr, costs, fixed)


def test_groups_are_all_networks_at_each_bitwidth_and_random_candidates(found):
    known = ranked.groups(found)
    assert list(known) == ["any bits", "8 bits", "4 bits"]
    assert len(np.unique(known["4 bits"].ops, axis=0)) == 27
    assert (known["4 bits"].bits == 1).all()
    both = np.concatenate(known["any bits"], axis=1)
    assert len(np.unique(both, axis=0)) == len(both) == 27 * 8


def test_a_score_that_is_the_truth_has_tau_one_and_two_equal_trainings_agree(found):
    for group in ranked.groups(found).values():
        taus = ranked.ranked(found, group)
        assert taus["NSR sum, quantized"].mean.tau > 0.99
        assert taus["NSR sum, quantized"].one_training > 0.99
        assert taus["another training"].one_training == pytest.approx(1)
        costs, truth = found.costs(*group)["macs"], found.accuracy(*group)
        assert taus["MACs"].mean.tau == pytest.approx(kendall_tau(costs, truth))


def test_noise_of_each_training_lowers_the_ceiling_and_the_tau_with_one(found):
    rng = np.random.default_rng(1)
    noisy = (found.right + rng.normal(0, 1500, found.right.shape)).clip(0).astype(np.uint16)
    own = dataclasses.replace(found, right=noisy, float_right=noisy[:, :, 0])
    taus = ranked.ranked(own, ranked.groups(own)["any bits"])
    assert taus["another training"].one_training < 0.9
    assert taus["NSR sum, quantized"].one_training < taus["NSR sum, quantized"].mean.tau < 0.99


def test_a_weighted_sum_that_is_fitted_on_ten_knows_the_rest(found):
    figures = ranked.everything(found)
    assert min(figures["fitted"]["weighted NSR sum"]) > 0.97
    low, _, high = figures["fitted"]["network, from float"]
    assert 0.2 < low < high
    assert "[" in ranked.as_text(figures)
