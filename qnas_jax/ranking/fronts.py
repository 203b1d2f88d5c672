"""Fronts of QA-BWNAS, SPOS and FairNAS over the size, trained alike and compared.

All three search one space for one teacher. Their networks begin as the same blocks, those that
QA-BWNAS distils, so only the choice differs.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from qnas_jax import space
from qnas_jax.bwnas.pipeline import Searched
from qnas_jax.oneshot import coding, evolving
from qnas_jax.ranking import scores, trained
from qnas_jax.ranking.drawn import Drawn
from qnas_jax.report.policies import metrics_of
from qnas_jax.run import artefacts
from qnas_jax.run.stage import Stage
from qnas_jax.search import front
from qnas_jax.search.ranking import hypervolume
from qnas_jax.stages import candidates
from qnas_jax.stages.experiment import Purpose, key

SIZE = "size_bytes"
# The box of an area: to what lies a little beyond the largest subnet, so that this one counts, and
# from half of the teacher's accuracy.
BEYOND, LEAST_ACCURACY = 1.1, 0.5
TITLES = {"bwnas": "QA-BWNAS", "spos": "SPOS", "fairnas": "FairNAS"}


class Front(NamedTuple):
    """What a search found, and what it took.

    Attributes:
      supernet_seconds: Training of the supernet.
      score_seconds: Filling of the table, or scoring of candidates while they evolve.
      search_seconds: The search of the table; 0 where the scores are the search.
      scored: Rows of the table, or candidates.
      subnets: Those that are trained, spread over the front.
    """

    supernet_seconds: float
    score_seconds: float
    search_seconds: float
    scored: int
    subnets: list[space.Subnet]


def compare(workdir: pathlib.Path, found: Searched) -> dict[str, Any]:
    """Searches by SPOS and FairNAS beside a finished search, and trains all fronts.

    Args:
      workdir: The folder of the run.
      found: The search of QA-BWNAS.

    Returns:
      The content of `audit/fronts.json`: "box", the size and the accuracy where areas end;
      "fronts" by the name of the search, with "networks" and the "area" that they dominate.
    """
    config, problem, _, teacher, _ = found.begun
    fronts = {"bwnas": _blockwise(found)}
    fronts |= {name: _one_shot(workdir, found, name) for name in scores.SAMPLINGS}
    subnets = dict.fromkeys(subnet for one in fronts.values() for subnet in one.subnets)
    drawn = [Drawn("front", subnet) for subnet in subnets]
    reached, rows = trained.train(workdir, found, drawn, [config.seed])
    networks = {
        subnet: {"subnet": space.format_subnet(subnet), SIZE: row[SIZE], "accuracy": float(value)}
        for subnet, row, value in zip(subnets, rows, reached["quantized"][:, 0], strict=True)
    }
    metric = problem.task.metric
    _, costs = _coded(found)
    runs = np.where(np.isfinite(costs.layers), costs.layers, 0.0)  # infinite: not on this target
    size = BEYOND * float(runs.max((1, 2)).sum() + costs.fixed)
    at_best = metrics_of(teacher.stage.folder, metric)["quantized"]
    content = {
        name: {
            **artefacts.plain(one._asdict() | {"subnets": len(one.subnets)}),
            "networks": (own := [networks[subnet] for subnet in one.subnets]),
            "area": area(own, size, at_best),
        }
        for name, one in fronts.items()
    }
    return {
        "metric": metric.name,
        "title": metric.title,
        "seed": config.seed,
        "box": {SIZE: size, "accuracy": at_best},
        "fronts": content,
    }


def area(networks: Sequence[Mapping[str, Any]], size: float, accuracy: float) -> float:
    """Returns the share of a box that networks dominate: the hypervolume of size and accuracy.

    Args:
      networks: Each with "size_bytes" and "accuracy".
      size: Where the box ends; it begins at 0.
      accuracy: Its upper end; the lower one is `LEAST_ACCURACY` of it. A network above it makes
        the share larger.
    """
    points = np.array([(one[SIZE], -one["accuracy"]) for one in networks], np.float64)
    lowest = LEAST_ACCURACY * accuracy
    return hypervolume(points, np.array([size, -lowest])) / (size * (accuracy - lowest))


def _blockwise(found: Searched) -> Front:
    points = front.spread(found.points, found.begun.config.audit.front)
    return Front(
        found.distilled.seconds,
        found.populated.seconds,
        found.searched.seconds,
        len(found.rows.nsr),
        [space.parse_subnet(point.subnet) for point in points],
    )


def _one_shot(workdir: pathlib.Path, found: Searched, name: str) -> Front:
    """NSGA-II over the accuracy with shared weights and the size, as FairNAS."""
    config, own = found.begun.config, found.begun.config.audit
    supernet, score = scores.one_shot_supernet(workdir, found, name)
    coded, costs = _coded(found)
    made_from = {
        "supernet": supernet.hash,
        "bits": [list(pair) for pair in coded.bits],
        "bits_per": config.space.bits_per,
        "costs": artefacts.digest([costs.layers.tolist(), costs.fixed]),
        "candidates": own.candidates,
        "seed": config.seed,
        **scores.measured_on(found),
    }
    stage = Stage(workdir / "audit" / f"{name}-front", made_from)
    stage.begin()
    remembered = candidates.remembering(
        score, stage.folder / "scores.json", f"candidates, {TITLES[name]}"
    )
    tried = evolving.spread_out(
        key(config.seed, Purpose.SUPERNET_PATHS),
        lambda genes: remembered(coding.subnets_at(coded, genes)).accuracy,
        evolving.Searched(coded, costs, evolving.NO_BUDGET, coding.cheapest(coded, costs, SIZE)),
        own.candidates,
    )
    stage.finish()
    columns = (
        coding.subnets_at(coded, tried.genes),
        coding.costs_of(coded, costs, tried.genes).tolist(),
        tried.accuracy.tolist(),
    )
    scored = [evolving.Scored(*row) for row in zip(*columns, strict=True)]
    chosen = [one.subnet for one in evolving.spread(scored, own.front)]
    return Front(supernet.seconds, stage.seconds, 0.0, len(scored), chosen)


def _coded(found: Searched) -> tuple[coding.Coding, coding.Costs]:
    """What genes number in the space of a run, and its sizes."""
    config, problem, deployed, _, _ = found.begun
    coded = coding.Coding(problem.space, config.space.bits, config.space.bits_per == "layer")
    return coded, coding.known_costs(deployed, coded)[SIZE]


def as_text(results: Mapping[str, Any]) -> str:
    """The fronts of a run, a line for each search and network, for a terminal."""
    lines = [f"{'search':10} {'supernet':>9} {'scores':>8} {'search':>7} {'scored':>7} {'area':>6}"]
    for name, one in results["fronts"].items():
        seconds = [one[f"{part}_seconds"] for part in ("supernet", "score", "search")]
        lines.append(
            "{:10} {:7.0f} s {:6.0f} s {:5.2f} s {:7d} {:6.3f}".format(
                TITLES[name], *seconds, one["scored"], one["area"]
            )
        )
        for network in one["networks"]:
            size, accuracy = network[SIZE] / 1e3, network["accuracy"]
            lines.append(f"{size:14.1f} kB {accuracy:7.2f}  {network['subnet']}")
    return "\n".join(lines)
