"""How well scores rank the networks of a benchmark, where every accuracy is known."""

from typing import Any, NamedTuple

import jax
import numpy as np

from qnas_jax.benchmark.summary import seed_tau
from qnas_jax.benchmark.table import Benchmark
from qnas_jax.search import predictor, ranking
from qnas_jax.search.ranking import Tau

ANY = "any bits"
SAMPLE = 500  # candidates whose blocks have any bitwidths
FITTED_ON, SPLITS = (10, 20, 30), 20  # candidates that a predictor is fitted on; random choices


class Group(NamedTuple):
    """Candidates that are ranked among each other.

    Attributes:
      ops: int64[n, blocks], see `Benchmark.accuracy`.
      bits: int64[n, blocks].
    """

    ops: np.ndarray
    bits: np.ndarray


def groups(found: Benchmark, seed: int = 0) -> dict[str, Group]:
    """Returns random candidates with any bitwidths, and all networks at each bitwidth."""
    rng, blocks = np.random.default_rng(seed), len(found.space.blocks)
    ops = np.stack(np.unravel_index(np.arange(len(found.right)), (len(found.space.ops),) * blocks))
    drawn = [
        rng.integers(count, size=(SAMPLE, blocks))
        for count in (len(found.space.ops), len(found.bits))
    ]
    at_each = {
        f"{bits} bits": Group(ops.T, np.full((len(found.right), blocks), place))
        for place, bits in enumerate(found.bits)
    }
    return {ANY: Group(*drawn), **at_each}


def noise(found: Benchmark, group: Group) -> np.ndarray:
    """Returns the NSR of each block at its bitwidth, float64[n, blocks]."""
    blocks = np.arange(group.ops.shape[1])
    return found.nsr[blocks, group.ops, 1 + group.bits].astype(np.float64)


def ranked(found: Benchmark, group: Group) -> dict[str, Tau]:
    """Returns how each score ranks candidates as the mean accuracy of all trainings does.

    "training" is another training of the same networks, the ceiling; it has no interval.
    """
    truth, costs = found.accuracy(*group), found.costs(*group)
    blocks = np.arange(group.ops.shape[1])
    in_float = found.nsr[blocks, group.ops, 0].astype(np.float64).sum(1)
    each = np.stack([found.accuracy(*group, seed) for seed in range(found.seeds)], axis=1)
    ceiling = seed_tau(each) if found.seeds > 1 else float("nan")
    return {
        "NSR sum, quantized": ranking.interval(0, noise(found, group).sum(1), truth),
        "NSR sum in float": ranking.interval(0, in_float, truth),
        "accuracy in float": ranking.interval(
            0, found.float_accuracy(group.ops), truth, lower_is_better=False
        ),
        "size": ranking.interval(0, costs["size_bytes"], truth, lower_is_better=False),
        "MACs": ranking.interval(0, costs["macs"], truth, lower_is_better=False),
        "another training": Tau(ceiling, float("nan"), float("nan")),
    }


def fitted(found: Benchmark, group: Group, seed: int = 0) -> dict[str, list[float]]:
    """Returns the tau of predictors on the candidates that they were not fitted on.

    Each is fitted on `FITTED_ON` random candidates, as often as `SPLITS`; the mean is returned.
    """
    rng, truth, own = np.random.default_rng(seed), found.accuracy(*group), noise(found, group)
    start, features = _pretrained(found), _encoded(found, group.ops, group.bits)
    means: dict[str, list[float]] = {"weighted NSR sum": [], "network, from float": []}
    for count in FITTED_ON:
        taus = []
        for _ in range(SPLITS):
            order = rng.permutation(len(truth))
            some, rest = order[:count], order[count:]
            linear = predictor.fit_linear(own[some], truth[some])
            network = predictor.train(
                jax.random.key(seed), _rows(features, some), _standard(truth[some]),
                predictor.Training(steps=100), start,
            )  # fmt: skip
            guesses = (
                predictor.predict(linear, own[rest]),
                predictor.forward(network, _rows(features, rest)),
            )
            taus.append([ranking.tau(g, truth[rest], lower_is_better=False) for g in guesses])
        for name, tau in zip(means, np.mean(taus, axis=0), strict=True):
            means[name].append(float(tau))
    return means


def _pretrained(found: Benchmark) -> predictor.Network:
    """A network of the ops that knows the NSR sums in float of all networks."""
    ops = groups(found)[f"{found.bits[0]} bits"].ops
    sums = found.nsr[np.arange(ops.shape[1]), ops, 0].astype(np.float64).sum(1)
    features = _encoded(found, ops, None)
    return predictor.train(jax.random.key(0), features, _standard(-sums))


def _encoded(found: Benchmark, ops: np.ndarray, bits: Any) -> predictor.Features:
    def one_hot(places: np.ndarray, count: int) -> np.ndarray:
        return np.eye(count, dtype=np.float32)[places].reshape(len(places), -1)

    own = None if bits is None else one_hot(bits, len(found.bits))
    return predictor.Features(one_hot(ops, len(found.space.ops)), own)


def _rows(features: predictor.Features, places: np.ndarray) -> predictor.Features:
    return jax.tree.map(lambda part: part[places], features)


def _standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / max(float(values.std()), 1e-12)


def as_text(found: Benchmark) -> str:
    """Returns the tables of `docs/ranking.md` on a benchmark."""
    known = groups(found)
    rows = {name: ranked(found, group) for name, group in known.items()}
    lines = [f"{'tau':20}" + "".join(f"{name:>20}" for name in rows)]
    for score in rows[ANY]:
        cells = [_cell(row[score]) for row in rows.values()]
        lines.append(f"{score:20}" + "".join(f"{cell:>20}" for cell in cells))
    lines.append(f"{'fitted on':20}" + "".join(f"{count:>7}" for count in FITTED_ON))
    for name, taus in fitted(found, known[ANY]).items():
        lines.append(f"{name:20}" + "".join(f"{tau:7.2f}" for tau in taus))
    return "\n".join(lines)


def _cell(found: Tau) -> str:
    if np.isnan(found.low):
        return f"{found.tau:.2f}"
    return f"{found.tau:.2f} [{found.low:.2f}, {found.high:.2f}]"
