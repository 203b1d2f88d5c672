"""How well scores rank networks: rank correlation with its interval, regret, hypervolume.

Everywhere a higher `truth` (an accuracy) is better, and a lower score, unless `lower_is_better` is
False. Scores and truths may be infinite, but not NaN: what failed has no place in a ranking.
"""

from typing import NamedTuple

import numpy as np

from qnas_jax import metrics
from qnas_jax.search import pareto

LEAST_ITEMS = 3  # different ones in a bootstrap draw; with fewer, a tau says nothing


class Tau(NamedTuple):
    """A rank correlation and the 95 % interval of its bootstrap over networks.

    Attributes:
      tau: From -1 to 1; 1 where scores rank as the truth does. NaN where all are tied.
      low: 2.5 % percentile of the draws; NaN where no draw has a tau.
      high: 97.5 % percentile.
    """

    tau: float
    low: float
    high: float


def tau(scores: np.ndarray, truth: np.ndarray, lower_is_better: bool = True) -> float:
    """Returns Kendall's tau-b, 1 where better scores go with a higher truth.

    Args:
      scores: float[n].
      truth: float[n], higher is better.
      lower_is_better: Whether that is so of the scores.

    Raises:
      ValueError: There is a NaN, or not one truth for each score.
    """
    scores, truth = _checked(scores, truth, lower_is_better)
    return metrics.kendall_tau(scores, truth)


def interval(
    seed: int,
    scores: np.ndarray,
    truth: np.ndarray,
    draws: int = 2000,
    lower_is_better: bool = True,
) -> Tau:
    """Returns tau with its 95 % percentile interval, bootstrapped over networks.

    Args:
      seed: Of the draws.
      scores: float[n].
      truth: float[n], higher is better.
      draws: How often n networks are drawn with replacement. Draws with fewer than 3 different
        networks, or with nothing but ties, are skipped.
      lower_is_better: Whether that is so of the scores.

    Raises:
      ValueError: As of `tau`.
    """
    every = np.ones((len(scores), len(scores)), bool)
    return interval_pairs(seed, scores, truth, every, draws, lower_is_better)


def within_bands(sizes: np.ndarray, width: float) -> np.ndarray:
    """Returns which pairs of networks are of about the same size, bool[n, n].

    A score that only ranks by size agrees with the truth on pairs of different sizes; on these it
    must know more.

    Args:
      sizes: float[n], any cost above 0.
      width: By which share of the larger size the sizes of a pair may differ.

    Raises:
      ValueError: A size is not above 0 and finite, or the width is negative.
    """
    sizes = np.asarray(sizes, np.float64)
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ValueError("sizes: all must be finite and above 0")
    if not width >= 0:
        raise ValueError(f"width={width}: must not be negative")
    larger = np.maximum(sizes[:, None], sizes[None])
    close = np.abs(sizes[:, None] - sizes[None]) <= width * larger
    return close & ~np.eye(len(sizes), dtype=bool)


def tau_pairs(
    scores: np.ndarray, truth: np.ndarray, mask: np.ndarray, lower_is_better: bool = True
) -> float:
    """Returns tau-b counted over some pairs alone; NaN where they are all tied, or none.

    Args:
      scores: float[n].
      truth: float[n], higher is better.
      mask: bool[n, n], the pairs, see `within_bands`; a pair counts if either order is in it.
      lower_is_better: Whether that is so of the scores.

    Raises:
      ValueError: As of `tau`, or the mask has another shape.
    """
    scores, truth = _checked(scores, truth, lower_is_better)
    once = np.ones((1, len(scores)), np.int64)
    return float(_taus(scores, truth, mask, once)[0])


def interval_pairs(
    seed: int,
    scores: np.ndarray,
    truth: np.ndarray,
    mask: np.ndarray,
    draws: int = 2000,
    lower_is_better: bool = True,
) -> Tau:
    """Returns `tau_pairs` with its 95 % percentile interval, bootstrapped over networks.

    Args:
      seed: Of the draws.
      scores: float[n].
      truth: float[n], higher is better.
      mask: bool[n, n], see `tau_pairs`.
      draws: See `interval`.
      lower_is_better: Whether that is so of the scores.

    Raises:
      ValueError: As of `tau_pairs`.
    """
    whole = tau_pairs(scores, truth, mask, lower_is_better)
    scores, truth = _checked(scores, truth, lower_is_better)
    items = len(scores)
    if items < LEAST_ITEMS:
        return Tau(whole, float("nan"), float("nan"))
    drawn = np.random.default_rng(seed).integers(items, size=(draws, items))
    counts = np.zeros((draws, items), np.int64)
    np.add.at(counts, (np.arange(draws)[:, None], drawn), 1)
    counts = counts[(counts > 0).sum(1) >= LEAST_ITEMS]
    found = _taus(scores, truth, mask, counts)
    found = found[~np.isnan(found)]
    low, high = np.percentile(found, [2.5, 97.5]) if len(found) else (np.nan, np.nan)
    return Tau(whole, float(low), float(high))


def _taus(
    scores: np.ndarray, truth: np.ndarray, mask: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Tau-b where each item occurs so many times, float64[draws]; NaN where all are tied.

    A pair of different items counts as often as the product of their counts. Copies of one item
    are tied in both, and tau-b counts no such pair.

    Args:
      scores: float[n], higher is better.
      truth: float[n].
      mask: bool[n, n], the pairs that count.
      counts: int[draws, n].
    """
    mask = np.asarray(mask, bool)
    if mask.shape != (len(scores), len(scores)):
        raise ValueError(f"mask of shape {mask.shape}: must be {(len(scores),) * 2}")
    mask = mask | mask.T
    order_a, order_b = _order(scores) * mask, _order(truth) * mask
    times = counts.astype(np.float64)
    agreeing, of_a, of_b = (
        ((times @ pairs) * times).sum(1)
        for pairs in (order_a * order_b, np.abs(order_a), np.abs(order_b))
    )
    scale = np.sqrt(of_a * of_b)  # of whole numbers: two equal ones give exactly that one
    return np.divide(agreeing, scale, out=np.full(len(times), np.nan), where=scale > 0)


def _order(values: np.ndarray) -> np.ndarray:
    """1, 0 or -1 for each pair: whether the first is higher, equal or lower; float64[n, n]."""
    first, second = values[:, None], values[None]
    return (first > second).astype(np.float64) - (first < second)


def regret(scores: np.ndarray, truth: np.ndarray, lower_is_better: bool = True) -> float:
    """Returns the truth of the best network minus that of the one with the best score.

    Where several have the best score, it is the mean of theirs: the one of a choice at random.

    Args:
      scores: float[n].
      truth: float[n], higher is better.
      lower_is_better: Whether that is so of the scores.

    Raises:
      ValueError: As of `tau`, or there is no network.
    """
    scores, truth = _checked(scores, truth, lower_is_better)
    if not len(scores):
        raise ValueError("scores: there is no network")
    return float(truth.max() - truth[scores == scores.max()].mean())


def _checked(
    scores: np.ndarray, truth: np.ndarray, lower_is_better: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Scores, by now the higher the better, and truths."""
    scores, truth = np.asarray(scores, np.float64), np.asarray(truth, np.float64)
    if scores.ndim != 1 or scores.shape != truth.shape:
        raise ValueError(f"scores {scores.shape}, truth {truth.shape}: must be one row of each")
    for name, values in (("scores", scores), ("truth", truth)):
        if np.isnan(values).any():
            raise ValueError(f"{name}: {np.isnan(values).sum()} of {len(values)} are NaN")
    return (-scores if lower_is_better else scores), truth


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """Returns the area or volume between points and a reference, exactly.

    Args:
      points: float[n, objectives], two or three objectives, all minimized. Points that are not
        finite, or not below the reference in every objective, add nothing.
      reference: float[objectives].

    Raises:
      ValueError: There are more or fewer objectives, or the reference is not finite.
    """
    points, reference = np.asarray(points, np.float64), np.asarray(reference, np.float64)
    objectives = len(reference)
    if objectives not in (2, 3) or points.ndim != 2 or points.shape[1] != objectives:
        raise ValueError(
            f"points {points.shape}, reference {reference.shape}: must be of 2 or 3 objectives"
        )
    if not np.isfinite(reference).all():
        raise ValueError(f"reference={reference.tolist()}: must be finite")
    points = points[(points < reference[None]).all(1)]
    points = points[pareto.non_dominated(points)]
    if objectives == 2:
        return _area(points, reference)
    # Between two heights the cross-section is that of the points up to the lower one.
    heights = np.unique(points[:, 2])
    thick = np.diff(np.append(heights, reference[2]))
    areas = [_area(points[points[:, 2] <= height, :2], reference[:2]) for height in heights]
    return float(np.dot(areas, thick)) if len(heights) else 0.0


def _area(points: np.ndarray, reference: np.ndarray) -> float:
    """The area between points [n, 2], all below the reference, and the reference."""
    front = points[pareto.non_dominated(points)]  # by ascending first, descending second objective
    before = np.concatenate([reference[1:], front[:-1, 1]])
    return float(((reference[0] - front[:, 0]) * (before - front[:, 1])).sum())
