"""What a search leaves: records as JSON, and a line each for a terminal."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qnas_jax import space
from qnas_jax.hqnas import experiment
from qnas_jax.report import relaxed as page
from qnas_jax.report.policies import metrics_of
from qnas_jax.run import artefacts
from qnas_jax.space import COSTS


def write_results(
    workdir: pathlib.Path, begun: Any, rows: Sequence[tuple[Any, ...]]
) -> dict[str, Any]:
    """Writes `hqnas/results.json` and the page; returns the results.

    Args:
      workdir: The folder of the run.
      begun: The run.
      rows: Of each search its seed, budget, stage, best subnet, all scored subnets, trained
        network and the stage of the warm-up.
    """
    metric, own = begun.problem.task.metric, begun.config.hqnas
    teacher = metrics_of(begun.teacher.stage.folder, metric)
    records = []
    for seed, share, stage, best, scored, network, warm in rows:
        trained = metrics_of(network.stage.folder, metric)
        records.append(
            {
                "method": "hqnas",
                "stage": stage.folder.name,
                "seed": seed,
                "budget": begun.budgets[share],
                "budget_setting": share,
                "accuracy": trained["quantized"],
                "accuracy_fp32": trained["fp32"],
                "search_accuracy": best.accuracy,
                "subnet": space.format_subnet(best.subnet),
                **experiment.cost_of(begun, best.subnet),
                "seconds": round(stage.seconds, 1),
                "warmup_seconds": round(warm.seconds, 1),
                "train_seconds": round(network.stage.seconds, 1),
                "scored": [[space.format_subnet(s), c, a] for s, c, a in scored],
            }
        )
    results = {
        "metric": metric.name,
        "device": begun.config.hardware.target,
        "cost_name": own.cost,
        "fp32": teacher["fp32"],
        "int8": teacher["quantized"],
        "teacher_cost": begun.budgets[own.budgets[0]] / own.budgets[0],
        "records": records,
        "seed": begun.config.seed,
    }
    artefacts.write_json(workdir / "hqnas" / "results.json", results)
    artefacts.write_json(workdir / "config.json", begun.config)
    page.write(workdir, metric.title, results)
    return results


def as_text(results: Mapping[str, Any]) -> str:
    """The networks of a run, a line each, for a terminal."""
    cost = COSTS[results["cost_name"]]
    lines = [
        f"{results['metric']} of the teacher: in float {results['fp32']:.2f}, "
        f"INT8 {results['int8']:.2f}, {cost.title} "
        f"{results['teacher_cost'] / cost.per_shown_unit:.4g} {cost.shown_unit}",
        f"{'budget':>8} {'seed':>5} {cost.title:>10} {'size':>9} {results['metric']:>8}  subnet",
    ]
    for row in results["records"]:
        value = row[results["cost_name"]] / cost.per_shown_unit
        lines.append(
            f"{row['budget_setting']:8g} {row['seed']:5} {value:7.4g} {cost.shown_unit} "
            f"{row['size_bytes'] / 1e3:6.1f} kB {row['accuracy']:8.2f}  {row['subnet']}"
        )
    scores = [row["accuracy"] for row in results["records"]]
    lines.append(f"mean {np.mean(scores):.2f}")
    return "\n".join(lines)
