"""The page of a one-shot search, and its figure."""

import html
import pathlib
import string
from collections.abc import Mapping
from typing import Any

from qnas_jax.report import style
from qnas_jax.report.figures import BLOCKS, FAINT, INK, SUBNET, TEACHER, new_axes, svg

# isort: split
from matplotlib.figure import Figure

from qnas_jax.report.page import STYLE
from qnas_jax.run import artefacts
from qnas_jax.run.log import duration
from qnas_jax.space import COSTS

HOW = {
    "uniform": "one uniform path in each step (SPOS)",
    "fair": "a path of each op of each layer before every change of the weights (FairNAS)",
}
SEARCHES = {
    "evolution": "the most accurate subnet within each budget is trained to the end",
    "nsga2": "subnets spread over the front of accuracy and cost are trained to the end",
}

_PAGE = string.Template("""<!doctype html>
<html lang="en"><meta charset="utf-8">
<title>qnas_jax: $name</title>
<style>$style</style>
<h1>$name</h1>
<p class="note">The teacher: $metric $fp32 % in float, $int8 % with 8 bits everywhere; $cost_title
$teacher_cost ($device). The supernet was trained with $how. $count
subnets were scored with its weights; $chosen. A budget of 0.5
is half of the teacher's cost with 8 bits. "Shared weights": quantized, on held-out training images;
"in float" and "quantized" are those of the trained network, on the validation images.</p>
<table>
<tr><th>name</th><th>budget</th><th>cost</th><th>size</th><th>$metric, shared weights</th>
<th>in float</th><th>quantized</th><th>supernet</th><th>search</th><th>training</th>
<th>subnet</th></tr>
$rows
</table>
<h2>Accuracy over cost</h2>
$accuracy
<p class="note">Dots: all subnets, scored with the shared weights. Open circles: the chosen ones
among them. Filled: the same after training, with their bitwidths.</p>
</html>
""")


def write(workdir: pathlib.Path, metric: str, results: Mapping[str, Any]) -> None:
    """Writes `report/index.html`, its figure and `report/results.json`.

    Args:
      workdir: The folder of the run.
      metric: Title of the task's figure.
      results: The content of `oneshot/results.json`.
    """
    figure, cost = accuracy_over_cost(results, metric), COSTS[results["cost_name"]]
    artefacts.write(workdir / "report" / "accuracy.svg", figure.encode())
    page = _PAGE.substitute(
        style=STYLE,
        name=html.escape(workdir.name),
        metric=metric,
        fp32=f"{results['fp32']:.2f}",
        int8=f"{results['int8']:.2f}",
        device=results["device"],
        cost_title=cost.title,
        teacher_cost=_shown(results["teacher_cost"], results["cost_name"]),
        how=HOW[results["sampling"]],
        chosen=SEARCHES[results["search"]],
        count=sum(map(len, results["scored"].values())),
        rows="\n".join(_row(row, results) for row in results["records"]),
        accuracy=figure,
    )
    artefacts.write(workdir / "report" / "index.html", page.encode())
    artefacts.write_json(workdir / "report" / "results.json", results)


def _shown(value: float, cost: str) -> str:
    return f"{value / COSTS[cost].per_shown_unit:.4g} {COSTS[cost].shown_unit}"


def _row(row: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    cells = (
        row["name"],
        f"{row['budget_setting']:g}" if row["budget_setting"] else "",
        _shown(row["cost"], results["cost_name"]),
        f"{row['size_bytes'] / 1e3:.1f} kB",
        f"{row['shared_accuracy']:.2f}",
        f"{row['accuracy_fp32']:.2f}",
        f"{row['accuracy']:.2f}",
        duration(results["supernet_seconds"]),
        duration(row["search_seconds"]),
        duration(row["train_seconds"]),
        f"<code>{row['subnet']}</code>",
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


@style.plain
def accuracy_over_cost(results: Mapping[str, Any], metric: str) -> str:
    """All scored subnets, the chosen ones before and after training, and the teacher.

    Args:
      results: The content of `oneshot/results.json`.
      metric: Title of the task's figure.
    """
    cost, records = COSTS[results["cost_name"]], results["records"]
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    axes = new_axes(figure, 1, 1, 1)
    for number, (name, rows) in enumerate(results["scored"].items()):
        colour = FAINT if len(results["scored"]) == 1 else BLOCKS[1 + number % (len(BLOCKS) - 1)]
        x = [value / cost.per_shown_unit for _, value, _ in rows]
        axes.plot(x, [a for *_, a in rows], ".", color=colour, alpha=0.6, label=f"scored, {name}")
    x = [row["cost"] / cost.per_shown_unit for row in records]
    axes.plot(
        x, [row["shared_accuracy"] for row in records], "o", mfc="none", mec=INK, label="chosen"
    )
    axes.plot(x, [row["accuracy"] for row in records], "o", color=SUBNET, label="trained")
    axes.plot(
        [results["teacher_cost"] / cost.per_shown_unit], [results["int8"]], "s", color=TEACHER,
        label="teacher, 8 bits",
    )  # fmt: skip
    axes.set(xlabel=f"{cost.title} ({cost.shown_unit})", ylabel=f"{metric} (%)")
    axes.legend(fontsize=8, frameon=False)
    return svg(figure)
