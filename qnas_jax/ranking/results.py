"""What an audit finds: how well each score ranks, how well anything can, and a paragraph of it."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qnas_jax import space
from qnas_jax.ranking.drawn import Drawn, bits_of
from qnas_jax.ranking.scores import Scored
from qnas_jax.report.ranking import interval, ranking_place
from qnas_jax.search import predictor, ranking
from qnas_jax.search.ranking import Tau

CONTROLS = ("size", "macs", "random")
FITTED_ON, SPLITS = (10, 20, 30), 50  # networks that a weighted sum is fitted on; random choices
CLOSE = 0.05  # of tau: what is nearer to the ceiling than this is as good as training


def gather(
    drawn: Sequence[Drawn],
    reached: Mapping[str, np.ndarray],
    rows: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Scored],
    noise: Mapping[str, np.ndarray],
    band: float,
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Returns the content of `audit/results.json`.

    Args:
      drawn: The subnets.
      reached: Accuracies "fp32" and "quantized", float64[subnets, seeds].
      rows: `metrics.json` of each subnet.
      scores: All scores by name.
      noise: What weighted sums are fitted on, float64[subnets, blocks] by name.
      band: See `Audit.band`.
      seeds: Of the trainings.
    """
    quantized = reached["quantized"]
    truth, sizes = quantized.mean(1), np.array([row["size_bytes"] for row in rows], np.float64)
    kinds = [bits_of(one.subnet) for one in drawn]
    bits = [[choice[1:] for block in one.subnet for choice in block] for one in drawn]
    alike = np.array([[a == b for a in bits] for b in bits]) & ~np.eye(len(bits), dtype=bool)
    masks = {"equal_size": ranking.within_bands(sizes, band), "equal_bits": alike}
    subnets = [
        {
            "kind": one.kind,
            "bits": kind,
            "subnet": space.format_subnet(one.subnet),
            "size_bytes": row["size_bytes"],
            "macs": row["macs"],
            "quantized": values.tolist(),
            "fp32": floats.tolist(),
            "scores": {name: float(score.values[i]) for name, score in scores.items()},
        }
        for i, (one, kind, row, values, floats) in enumerate(
            zip(drawn, kinds, rows, quantized, reached["fp32"], strict=True)
        )
    ]
    found = {
        "scores": {name: _ranked(score, quantized, masks) for name, score in scores.items()},
        "ceiling": _ceiling(quantized, masks),
        "noise": float(quantized.std(1, ddof=1).mean()) if len(seeds) > 1 else None,
        "pairs": {name: int(mask.sum()) // 2 for name, mask in masks.items()},
        "fitted_on": {name: _curve(values, truth) for name, values in noise.items()},
        "band": band,
        "seeds": list(seeds),
        "subnets": subnets,
    }
    return {**found, "paragraph": paragraph(found)}


def _ranked(
    score: Scored, quantized: np.ndarray, masks: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """How well a score ranks all networks by the mean of their seeds, and those of each mask.

    "one_seed" is the mean tau with a single training, which can be compared with the ceiling.
    """
    lower, truth = score.lower_is_better, quantized.mean(1)
    single = [ranking.tau(score.values, one, lower) for one in quantized.T]
    whole = ranking.interval(0, score.values, truth, lower_is_better=lower)
    return {
        "title": score.title,
        **_plain(whole),
        "one_seed": _number(float(np.mean(single))),
        **{
            name: _plain(
                ranking.interval_pairs(0, score.values, truth, mask, lower_is_better=lower)
            )
            for name, mask in masks.items()
        },
        "regret": ranking.regret(score.values, truth, lower),
    }


def _plain(found: Tau) -> dict[str, float | None]:
    """For JSON, which has no NaN."""
    return {name: _number(value) for name, value in found._asdict().items()}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _ceiling(quantized: np.ndarray, masks: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    """How well one training ranks another: tau between two seeds; None for one seed.

    The intervals are of the first two, "one_seed" is the mean over all pairs.
    """
    if quantized.shape[1] < 2:
        return None
    first = _ranked(Scored("another training", quantized[:, 0], False), quantized[:, 1:2], masks)
    taus = [
        ranking.tau(a, b, lower_is_better=False) for a, b in itertools.combinations(quantized.T, 2)
    ]
    return {**first, "one_seed": _number(float(np.mean(taus)))}


def _curve(noise: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The mean tau on all other networks, by the number of networks that a sum is fitted on."""
    found, rng = {}, np.random.default_rng(0)
    for count in FITTED_ON:
        if len(truth) - count < 8:  # too few others to rank
            break
        taus = []
        for _ in range(SPLITS):
            order = rng.permutation(len(truth))
            fitted, others = order[:count], order[count:]
            linear = predictor.fit_linear(noise[fitted], truth[fitted])
            predictions = predictor.predict(linear, noise[others])
            taus.append(ranking.tau(predictions, truth[others], lower_is_better=False))
        found[str(count)] = float(np.nanmean(taus))
    return found


def paragraph(found: Mapping[str, Any]) -> str:
    """Returns what to trust, in a few sentences."""
    scores, ceiling = found["scores"], found["ceiling"]
    known = {n: s for n, s in scores.items() if n not in CONTROLS and s["tau"] is not None}
    if not known:
        return "All networks or all scores are tied: nothing can be ranked."
    name = max(known, key=lambda n: known[n]["tau"])
    best, plain, size = scores[name], scores["nsr"], scores["size"]
    sums = "" if best is plain else f"The plain NSR sum of the table has {interval(plain)}. "
    text = [
        f"Of all scores, {best['title']} ranks these {len(found['subnets'])} networks best: "
        f"tau {interval(best)} (the best of {len(known)}, so its interval is too narrow).",
        f"{sums}The size alone has {interval(size)}.",
    ]
    if ceiling:
        text.append(_against(best, ceiling))
    equal = {n: s for n, s in known.items() if s["equal_size"]["tau"] is not None}
    if equal:
        near = max(equal, key=lambda n: equal[n]["equal_size"]["tau"])
        sizes = scores["size"]["equal_size"]
        text.append(
            f"Among the {found['pairs']['equal_size']} pairs of nearly equal size, "
            f"{equal[near]['title']} is best with {interval(equal[near]['equal_size'])}; "
            f"size has {interval(sizes)}."
        )
        low = equal[near]["equal_size"]["low"]
        if low is None or low <= 0:
            text.append("Its interval is not above zero: for networks of one size, trust none.")
    return " ".join(text)


def _against(best: Mapping[str, Any], ceiling: Mapping[str, Any]) -> str:
    """How the best score compares with a second training."""
    agree = f"Two trainings of the same networks agree to {interval(ceiling)}"
    if (ceiling["low"] or 0.0) <= 0:
        return f"{agree}: noise hides their order, so nothing here can be trusted."
    gap = (ceiling["one_seed"] or 0.0) - (best["one_seed"] or 0.0)
    well = "as well as" if gap < CLOSE else "less well than"
    single = "none" if best["one_seed"] is None else f"{best['one_seed']:.2f}"
    return f"{agree}; with a single training the best score has {single}, {well} another training."


def as_text(results: Mapping[str, Any]) -> str:
    """The scores of an audit, a line each, for a terminal."""
    lines = [f"{'tau':>22} {'equal size':>22} {'equal bits':>22} {'regret':>7}  score"]
    rows = [*results["scores"].values()]
    rows += [results["ceiling"]] if results["ceiling"] else []
    for row in sorted(rows, key=ranking_place):
        cells = [interval(row), interval(row["equal_size"]), interval(row["equal_bits"])]
        lines.append(" ".join(f"{c:>22}" for c in cells) + f" {row['regret']:7.2f}  {row['title']}")
    return "\n".join([*lines, results["paragraph"]])
