"""What a search leaves: records as JSON, and a line each for a terminal."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qnas_jax import space
from qnas_jax.oneshot.evolving import Scored
from qnas_jax.oneshot.experiment import Begun
from qnas_jax.oneshot.searching import Found
from qnas_jax.report import oneshot as page
from qnas_jax.report.policies import metrics_of
from qnas_jax.run import artefacts
from qnas_jax.run.stage import Stage
from qnas_jax.space import COSTS
from qnas_jax.stages.evaluation import Trained


class Row(NamedTuple):
    """A subnet that was trained to the end.

    Attributes:
      found: The search that chose it.
      scored: The subnet, with its score with the shared weights.
      network: The trained network.
    """

    found: Found
    scored: Scored
    network: Trained


def write_results(
    workdir: pathlib.Path, begun: Begun, supernet: Stage, rows: Sequence[Row]
) -> dict[str, Any]:
    """Writes `oneshot/results.json` and the page; returns the results.

    Args:
      workdir: The folder of the run.
      begun: The run.
      supernet: The stage of the shared weights.
      rows: What was chosen and trained.
    """
    metric, own = begun.problem.task.metric, begun.config.oneshot
    teacher = metrics_of(begun.teacher.stage.folder, metric)
    searches = {row.found.stage.folder.name: row.found for row in rows}
    results = {
        "metric": metric.name,
        "fp32": teacher["fp32"],
        "int8": teacher["quantized"],
        "device": begun.deployed.target.name,
        "cost_name": own.cost,
        "teacher_cost": begun.teacher_cost,
        "sampling": own.sampling,
        "search": own.search,
        "supernet_seconds": round(supernet.seconds, 1),
        "records": [_record(begun, row) for row in rows],
        "scored": {
            name: [[space.format_subnet(s), cost, accuracy] for s, cost, accuracy in one.scored]
            for name, one in searches.items()
        },
        "seed": begun.config.seed,
    }
    artefacts.write_json(workdir / "oneshot" / "results.json", results)
    page.write(workdir, metric.title, results)
    return artefacts.plain(results)


def _record(begun: Begun, row: Row) -> dict[str, Any]:
    metric, stage = begun.problem.task.metric, row.network.stage
    trained, found = metrics_of(stage.folder, metric), row.found
    return {
        "name": found.stage.folder.name,
        "subnet": space.format_subnet(row.scored.subnet),
        "budget_setting": found.share,
        "budget": begun.budgets.get(found.share),
        "cost": row.scored.cost,
        "size_bytes": trained["size_bytes"],
        "encoder_size_bytes": trained["encoder_size_bytes"],
        "shared_accuracy": row.scored.accuracy,
        "accuracy_fp32": trained["fp32"],
        "accuracy": trained["quantized"],
        "search_seconds": round(found.stage.seconds, 1),
        "train_seconds": round(stage.seconds, 1),
    }


def as_text(results: Mapping[str, Any]) -> str:
    """The networks of a run, a line each, for a terminal."""
    cost, metric = COSTS[results["cost_name"]], results["metric"]
    lines = [
        f"{metric} of the teacher: in float {results['fp32']:.2f}, INT8 {results['int8']:.2f}",
        f"{'cost':>10} {'size':>10} {'shared':>7} {'float':>7} {metric:>7}  search, subnet",
    ]
    for row in results["records"]:
        value = f"{row['cost'] / cost.per_shown_unit:.4g} {cost.shown_unit}"
        size = f"{row['size_bytes'] / 1e3:.1f} kB"
        scores = [row[name] for name in ("shared_accuracy", "accuracy_fp32", "accuracy")]
        cells = " ".join(f"{score:7.2f}" for score in scores)
        lines.append(f"{value:>10} {size:>10} {cells}  {row['name']}, {row['subnet']}")
    return "\n".join(lines)
