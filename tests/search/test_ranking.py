import itertools
import warnings

import numpy as np
import pytest
from scipy import stats

from qnas_jax.search import ranking


def items(seed, count, values):
    """Scores and truths with many ties (few values) or none."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, values, count).astype(float), rng.integers(0, values, count).astype(
        float
    )


def plain_pairs(scores, truth, pairs):
    """Tau-b over pairs, counted one by one."""
    agree = tied_a = tied_b = both = 0
    for i, j in pairs:
        a, b = np.sign(scores[i] - scores[j]), np.sign(truth[i] - truth[j])
        agree += a * b
        tied_a += a == 0
        tied_b += b == 0
        both += 1
    below = np.sqrt((both - tied_a) * (both - tied_b))
    return agree / below if below else np.nan


def scipy_tau(a, b):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return stats.kendalltau(a, b).statistic


def test_the_sign_is_that_of_better_scores_with_a_higher_truth():
    noise, accuracy = np.array([0.1, 0.2, 0.3]), np.array([90.0, 80.0, 70.0])
    assert ranking.tau(noise, accuracy) == 1
    assert ranking.tau(noise, accuracy, lower_is_better=False) == -1
    assert ranking.tau(accuracy, accuracy, lower_is_better=False) == 1
    assert ranking.regret(noise, accuracy) == 0
    assert ranking.regret(noise, accuracy, lower_is_better=False) == 20
    assert ranking.tau_pairs(noise, accuracy, np.ones((3, 3), bool)) == 1


@pytest.mark.parametrize("values", [2, 4, 10**6])
def test_tau_is_scipys_with_ties_in_the_data_and_in_draws(values):
    for seed in range(20):
        scores, truth = items(seed, 15, values)
        expected = scipy_tau(-scores, truth)
        every = np.ones((15, 15), bool)
        assert ranking.tau(scores, truth) == pytest.approx(expected, nan_ok=True)
        assert ranking.tau_pairs(scores, truth, every) == pytest.approx(expected, nan_ok=True)
        drawn = np.random.default_rng(seed).integers(15, size=(10, 15))
        counts = np.stack([np.bincount(row, minlength=15) for row in drawn])
        found = ranking._taus(-scores, truth, every, counts)
        expected = [scipy_tau(-scores[row], truth[row]) for row in drawn]
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_the_interval_is_that_of_a_plain_bootstrap():
    scores, truth = items(5, 12, 8)
    found = ranking.interval(7, scores, truth, draws=300)
    taus = []
    for row in np.random.default_rng(7).integers(12, size=(300, 12)):
        if len(set(row.tolist())) >= 3:
            taus.append(scipy_tau(-scores[row], truth[row]))
    low, high = np.nanpercentile(taus, [2.5, 97.5])
    assert found == pytest.approx((scipy_tau(-scores, truth), low, high), abs=1e-12)
    assert found == ranking.interval(7, scores, truth, draws=300)
    assert found != ranking.interval(8, scores, truth, draws=300)
    assert found.low < found.tau < found.high


def test_draws_of_fewer_than_three_different_items_are_skipped():
    scores, truth = np.array([1.0, 2.0, 3.0]), np.array([3.0, 1.0, 2.0])
    whole = scipy_tau(-scores, truth)
    # All three items are in every draw that is left, so all have the same tau.
    assert ranking.interval(0, scores, truth) == pytest.approx((whole,) * 3)
    for count in (0, 1, 2):
        tau, low, high = ranking.interval(0, scores[:count], truth[:count])
        assert np.isnan([low, high]).all()
        assert np.isnan(tau) if count < 2 else tau == 1
    assert np.isnan(ranking.interval(0, np.ones(9), np.arange(9.0))).all()


def test_intervals_hold_the_true_tau_about_as_often_as_they_say():
    rng, inside = np.random.default_rng(0), 0
    correlation = 0.7
    truth_tau = 2 / np.pi * np.arcsin(correlation)  # of a bivariate normal distribution
    for seed in range(200):
        a, noise = rng.normal(size=(2, 30))
        b = correlation * a + np.sqrt(1 - correlation**2) * noise
        found = ranking.interval(seed, -a, b, draws=300)
        inside += found.low <= truth_tau <= found.high
    assert 0.88 <= inside / 200 <= 0.99


def test_pairs_are_those_of_about_the_same_size():
    sizes = np.array([100.0, 110.0, 200.0, 100.0, 190.0])
    mask = ranking.within_bands(sizes, 0.1)
    pairs = {(i, j) for i, j in itertools.permutations(range(5), 2) if mask[i, j]}
    assert pairs == {(0, 1), (1, 0), (0, 3), (3, 0), (1, 3), (3, 1), (2, 4), (4, 2)}
    assert not mask.diagonal().any()
    exact = ranking.within_bands(sizes, 0.0)
    assert np.argwhere(exact).tolist() == [[0, 3], [3, 0]]
    assert ranking.within_bands(sizes, 1.0).sum() == 20


@pytest.mark.parametrize("values", [3, 10**6])
def test_tau_counts_only_the_pairs_of_the_mask(values):
    for seed in range(10):
        scores, truth = items(seed, 14, values)
        sizes = np.random.default_rng(seed).uniform(50, 150, 14)
        mask = ranking.within_bands(sizes, 0.2)
        pairs = [(i, j) for i, j in itertools.combinations(range(14), 2) if mask[i, j]]
        expected = plain_pairs(-scores, truth, pairs)
        assert ranking.tau_pairs(scores, truth, mask) == pytest.approx(expected, nan_ok=True)
        assert ranking.tau_pairs(scores, truth, np.triu(mask)) == pytest.approx(expected)
        found = ranking.interval_pairs(seed, scores, truth, mask, draws=50)
        taus = []
        for row in np.random.default_rng(seed).integers(14, size=(50, 14)):
            pairs = itertools.combinations(row.tolist(), 2)
            close = [(i, j) for i, j in pairs if mask[i, j]]
            taus.append(plain_pairs(-scores, truth, close))
        assert found[1:] == pytest.approx(np.nanpercentile(taus, [2.5, 97.5]), abs=1e-12)
    assert np.isnan(ranking.tau_pairs(scores, truth, np.zeros((14, 14), bool)))


def test_a_score_that_is_only_the_size_ranks_nothing_within_bands():
    rng = np.random.default_rng(0)
    sizes = np.repeat([1e5, 2e5, 4e5, 8e5], 10) * rng.uniform(0.98, 1.02, 40)
    truth = np.repeat([60.0, 65.0, 70.0, 75.0], 10) + rng.normal(0, 1, 40)
    assert ranking.tau(-sizes, truth) > 0.7
    within = ranking.interval_pairs(0, -sizes, truth, ranking.within_bands(sizes, 0.1))
    assert within.low < 0 < within.high


def test_regret_is_what_the_best_score_costs():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, truth = rng.random((2, 9))
        expected = max(truth) - truth[list(scores).index(min(scores))]
        assert ranking.regret(scores, truth) == expected
    assert ranking.regret(np.array([1.0, 1.0, 2.0]), np.array([70.0, 60.0, 80.0])) == 15
    assert ranking.regret(np.array([np.inf, 1.0]), np.array([70.0, 60.0])) == 10


def test_what_is_not_a_ranking_is_refused():
    fine, broken = np.arange(3.0), np.array([1.0, np.nan, 2.0])
    for function in (ranking.tau, ranking.regret):
        with pytest.raises(ValueError, match="scores: 1 of 3 are NaN"):
            function(broken, fine)
        with pytest.raises(ValueError, match="truth: 1 of 3 are NaN"):
            function(fine, broken)
        with pytest.raises(ValueError, match="must be one row of each"):
            function(fine, fine[:2])
    with pytest.raises(ValueError, match="there is no network"):
        ranking.regret(fine[:0], fine[:0])
    with pytest.raises(ValueError, match=r"mask of shape \(2, 2\): must be \(3, 3\)"):
        ranking.tau_pairs(fine, fine, np.ones((2, 2), bool))
    for sizes in (np.array([1.0, 0.0]), broken):
        with pytest.raises(ValueError, match="finite and above 0"):
            ranking.within_bands(sizes, 0.1)
    with pytest.raises(ValueError, match=r"width=-0\.1: must not be negative"):
        ranking.within_bands(fine + 1, -0.1)


def boxes(points, reference):
    """The volume by inclusion and exclusion over all subsets of boxes."""
    total = 0.0
    for count in range(1, len(points) + 1):
        for chosen in itertools.combinations(points, count):
            sides = np.maximum(reference - np.max(chosen, axis=0), 0)
            total += (-1) ** (count + 1) * np.prod(sides)
    return total


@pytest.mark.parametrize("objectives", [2, 3])
@pytest.mark.parametrize("values", [4, 10**6])
def test_the_hypervolume_is_that_of_all_boxes(objectives, values):
    rng = np.random.default_rng(values)
    for count in (0, 1, 5, 9):
        points = rng.integers(0, values, (count, objectives)) / values
        reference = np.full(objectives, 0.8)  # some points are beyond it
        expected = boxes(points, reference)
        assert ranking.hypervolume(points, reference) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("objectives", [2, 3])
def test_the_hypervolume_is_the_share_of_random_points_that_are_dominated(objectives):
    rng = np.random.default_rng(1)
    points = rng.dirichlet(np.ones(objectives), 60)
    drawn = rng.random((40_000, objectives))
    share = (points[None] <= drawn[:, None]).all(2).any(1).mean()
    found = ranking.hypervolume(points, np.ones(objectives))
    assert found == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 40_000))


def test_points_beyond_the_reference_or_not_finite_add_nothing():
    reference = np.array([1.0, 1.0])
    points = [(0.5, 0.5), (0.0, 1.0), (2.0, 0.0), (np.nan, 0.0), (-np.inf, 0.0), (0.5, 0.5)]
    assert ranking.hypervolume(np.array(points), reference) == 0.25
    assert ranking.hypervolume(np.array(points[1:5]), reference) == 0
    assert ranking.hypervolume(np.zeros((0, 3)), np.ones(3)) == 0
    for bad in (np.ones(1), np.ones(4), np.ones(2)):
        with pytest.raises(ValueError, match="must be of 2 or 3 objectives"):
            ranking.hypervolume(np.zeros((1, max(3, len(bad)) if len(bad) != 1 else 1)), bad)
    with pytest.raises(ValueError, match="must be finite"):
        ranking.hypervolume(np.zeros((1, 2)), np.array([1.0, np.inf]))
