"""How well scores rank the networks of a benchmark, where every accuracy is known."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

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


class Ranked(NamedTuple):
    """How a score ranks candidates.

    Attributes:
      one_training: Tau with the accuracy of a single training, the mean over all trainings.
      mean: Tau with the mean accuracy of all trainings; None for a score that is a training.
    """

    one_training: float
    mean: Tau | None = None


def groups(found: Benchmark, seed: int = 0) -> dict[str, Group]:
    """Returns random candidates with any bitwidths, and all networks at each bitwidth."""
    blocks, networks, policies = len(found.space.blocks), len(found.right), found.right.shape[2]
    count = min(SAMPLE, networks * policies)
    drawn = np.random.default_rng(seed).choice(networks * policies, count, replace=False)
    network, policy = np.divmod(drawn, policies)
    ops = _places(np.arange(networks), len(found.space.ops), blocks)
    at_each = {
        f"{bits} bits": Group(ops, np.full_like(ops, place))
        for place, bits in enumerate(found.bits)
    }
    return {ANY: Group(ops[network], _places(policy, len(found.bits), blocks)), **at_each}


def _places(numbers: np.ndarray, count: int, blocks: int) -> np.ndarray:
    return np.stack(np.unravel_index(numbers, (count,) * blocks), axis=1)


def ranked(found: Benchmark, group: Group) -> dict[str, Ranked]:
    """Returns how each score ranks candidates as training does.

    The last two are scores from another training of the same networks, so only a single training
    is left to compare them with: its accuracy in float, and the accuracy itself, the ceiling.
    """
    truth, costs = found.accuracy(*group), found.costs(*group)
    each = [found.accuracy(*group, seed) for seed in range(found.seeds)]
    in_float = [found.float_accuracy(group.ops, seed) for seed in range(found.seeds)]

    def of(score: np.ndarray, lower_is_better: bool) -> Ranked:
        single = [ranking.tau(score, one, lower_is_better) for one in each]
        whole = ranking.interval(0, score, truth, lower_is_better=lower_is_better)
        return Ranked(float(np.mean(single)), whole)

    def of_another(scores: list[np.ndarray]) -> Ranked:
        pairs = itertools.permutations(range(found.seeds), 2)
        taus = [ranking.tau(scores[a], each[b], lower_is_better=False) for a, b in pairs]
        return Ranked(float(np.mean(taus)) if taus else float("nan"))

    return {
        "NSR sum, quantized": of(found.block_nsr(*group).sum(1), True),
        "NSR sum in float": of(found.float_block_nsr(group.ops).sum(1), True),
        "size": of(costs["size_bytes"], False),
        "MACs": of(costs["macs"], False),
        "another one in float": of_another(in_float),
        "another training": of_another(each),
    }


def fitted(found: Benchmark, group: Group, seed: int = 0) -> dict[str, list[float]]:
    """Returns the tau of predictors on the candidates that they were not fitted on.

    Each is fitted on `FITTED_ON` random candidates, as often as `SPLITS`; the mean is returned.
    """
    rng, truth, own = np.random.default_rng(seed), found.accuracy(*group), found.block_nsr(*group)
    start, features = _pretrained(found), _encoded(found, group.ops, group.bits)
    means: dict[str, list[float]] = {"weighted NSR sum": [], "network, from float": []}
    for count in FITTED_ON:
        taus = []
        for _ in range(SPLITS):
            order = rng.permutation(len(truth))
            some, rest = order[:count], order[count:]
            linear = predictor.fit_linear(own[some], truth[some])
            aims = predictor.standard(truth[some], truth[some])
            network = predictor.train(
                jax.random.key(seed), predictor.rows_of(features, some), aims,
                predictor.Training(steps=100), start,
            )  # fmt: skip
            guesses = (
                predictor.predict(linear, own[rest]),
                predictor.forward(network, predictor.rows_of(features, rest)),
            )
            taus.append([ranking.tau(g, truth[rest], lower_is_better=False) for g in guesses])
        for name, tau in zip(means, np.mean(taus, axis=0), strict=True):
            means[name].append(float(tau))
    return means


def _pretrained(found: Benchmark) -> predictor.Network:
    """A network of the ops that knows the NSR sums in float of all networks."""
    blocks = len(found.space.blocks)
    ops = _places(np.arange(len(found.right)), len(found.space.ops), blocks)
    sums = -found.float_block_nsr(ops).sum(1)
    features = _encoded(found, ops, None)
    return predictor.train(jax.random.key(0), features, predictor.standard(sums, sums))


def _encoded(found: Benchmark, ops: np.ndarray, bits: np.ndarray | None) -> predictor.Features:
    def one_hot(places: np.ndarray, count: int) -> np.ndarray:
        return np.eye(count, dtype=np.float32)[places].reshape(len(places), -1)

    own = None if bits is None else one_hot(bits, len(found.bits))
    return predictor.Features(one_hot(ops, len(found.space.ops)), own)


def everything(found: Benchmark) -> dict[str, Any]:
    """Returns all figures as JSON has them: `ranked` by group, and `fitted` on any bitwidths."""
    known = groups(found)
    rows = {
        name: {
            score: {"one_training": row.one_training, **(row.mean._asdict() if row.mean else {})}
            for score, row in ranked(found, group).items()
        }
        for name, group in known.items()
    }
    return {"ranked": rows, "fitted_on": FITTED_ON, "fitted": fitted(found, known[ANY])}


def as_text(figures: Mapping[str, Any]) -> str:
    """Returns the tables of `everything`, for a terminal."""
    rows = figures["ranked"]
    lines = [f"{'tau':22}" + "".join(f"{name:>29}" for name in rows)]
    for score in rows[ANY]:
        cells = "".join(f"{_cell(row[score]):>29}" for row in rows.values())
        lines.append(f"{score:22}{cells}")
    lines.append("with the mean of all trainings [95 %] | with a single one")
    lines.append(f"{'fitted on':22}" + "".join(f"{count:>7}" for count in figures["fitted_on"]))
    for name, taus in figures["fitted"].items():
        lines.append(f"{name:22}" + "".join(f"{tau:7.2f}" for tau in taus))
    return "\n".join(lines)


def _cell(row: Mapping[str, float]) -> str:
    single = f"| {row['one_training']:.2f}"
    if "tau" not in row:
        return single
    return f"{row['tau']:.2f} [{row['low']:.2f}, {row['high']:.2f}] {single}"
