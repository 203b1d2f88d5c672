"""What a search leaves: records as JSON, and a line each for a terminal."""

import pathlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from qnas_jax import space
from qnas_jax.hqnas import experiment
from qnas_jax.hqnas.derive import Scored
from qnas_jax.metrics import Metric
from qnas_jax.report import relaxed as page
from qnas_jax.report.policies import metrics_of
from qnas_jax.run import artefacts
from qnas_jax.run.stage import Stage, read_json
from qnas_jax.space import COSTS
from qnas_jax.stages import budgets
from qnas_jax.stages.evaluation import Trained


class Row(NamedTuple):
    """A network that was found.

    Attributes:
      seed: Of the search.
      share: The budget as the config has it; 0 for a preference.
      stage: The stage of the search or of the adaptation.
      scored: The drawn subnets, the best first.
      network: The trained network.
      method: What found it: "hqnas", "sequential" or "bwnas".
      seconds: Of the search ("seconds"), and of the warm-up, which all budgets share.
      adapted_from: The folder of the search that was adapted; "" for a search.
      more: Further figures of an adaptation.
    """

    seed: int
    share: float
    stage: Stage
    scored: list[Scored]
    network: Trained
    method: str = "hqnas"
    seconds: Mapping[str, float] = MappingProxyType({})
    adapted_from: str = ""
    more: Mapping[str, float] = MappingProxyType({})


def write_results(workdir: pathlib.Path, begun: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """Writes `hqnas/results.json` and the page; returns the results.

    Records of other searches and adaptations of the folder stay.

    Args:
      workdir: The folder of the run.
      begun: The run; its device and costs are those of the rows.
      rows: What was found.
    """
    metric, file = begun.problem.task.metric, workdir / "hqnas" / "results.json"
    new = [_record(begun, row, metric) for row in rows]
    old = read_json(file, "records")["records"] if file.exists() else []
    names = {record["name"] for record in new}
    records = [record for record in old if record["name"] not in names] + new
    teacher = metrics_of(begun.teacher.stage.folder, metric)
    results = {
        "metric": metric.name,
        "fp32": teacher["fp32"],
        "int8": teacher["quantized"],
        "records": sorted(records, key=lambda record: bool(record["adapted_from"])),
        "seed": begun.config.seed,
    }
    artefacts.write_json(file, results)
    page.write(workdir, metric.title, results)
    return results


def _record(begun: Any, row: Row, metric: Metric) -> dict[str, Any]:
    own, best = begun.config.hqnas, row.scored[0]
    trained = metrics_of(row.network.stage.folder, metric)
    teacher = budgets.teacher_cost(begun.deployed, begun.problem, own.cost)
    return {
        "method": row.method,
        "name": row.stage.folder.name,
        "adapted_from": row.adapted_from,
        "seed": row.seed,
        "device": begun.deployed.target.name,
        "cost_name": own.cost,
        "teacher_cost": teacher,
        "budget": row.share * teacher,
        "budget_setting": row.share,
        "limits": dict(begun.limits),
        "accuracy": trained["quantized"],
        "accuracy_fp32": trained["fp32"],
        "search_accuracy": best.accuracy,
        "subnet": space.format_subnet(best.subnet),
        **experiment.cost_of(begun, best.subnet),
        **{name: round(value, 1) for name, value in row.seconds.items()},
        "train_seconds": round(row.network.stage.seconds, 1),
        **row.more,
        "scored": [[space.format_subnet(s), c, a] for s, c, a in row.scored],
    }


def as_text(results: Mapping[str, Any]) -> str:
    """The networks of a run, a line each, for a terminal."""
    lines = [
        f"{results['metric']} of the teacher: in float {results['fp32']:.2f}, "
        f"INT8 {results['int8']:.2f}",
        f"{'cost':>10} {'size':>10} {results['metric']:>7}  name, subnet",
    ]
    for row in results["records"]:
        cost = COSTS[row["cost_name"]]
        value = f"{row[row['cost_name']] / cost.per_shown_unit:.4g} {cost.shown_unit}"
        size = f"{row['size_bytes'] / 1e3:.1f} kB"
        lines.append(
            f"{value:>10} {size:>10} {row['accuracy']:7.2f}  {row['name']}, {row['subnet']}"
        )
    return "\n".join(lines)
