"""The page of a search by gradient, and its figures."""

import html
import pathlib
import string
from collections.abc import Mapping
from typing import Any

import numpy as np

from qnas_jax.report import style
from qnas_jax.report.figures import FAINT, INK, SUBNET, TEACHER, new_axes, svg
from qnas_jax.report.page import STYLE

# isort: split
from matplotlib.figure import Figure

from qnas_jax import space
from qnas_jax.run import artefacts
from qnas_jax.run.log import read_metrics
from qnas_jax.space import COSTS

_PAGE = string.Template("""<!doctype html>
<html lang="en"><meta charset="utf-8">
<title>qnas_jax: $name</title>
<style>$style</style>
<h1>$name</h1>
<p class="note">The teacher: $metric $fp32 % in float, $int8 % with 8 bits everywhere. A budget of
0.5 is half of the teacher's $cost with 8 bits on $device. $metric below is that of the trained
network with its bitwidths, on the validation images.</p>
<table>
<tr><th>budget</th><th>seed</th><th>$cost</th><th>size</th><th>$metric</th><th>before training</th>
<th>subnet</th></tr>
$rows
</table>
<h2>Accuracy over cost</h2>
$accuracy
<p class="note">Filled: the trained networks. Open: all subnets that were drawn in the end, scored
with the shared weights on the held-out images.</p>
<h2>Ops and bits by layer</h2>
$layers
<h2>The search</h2>
$search
<p class="note">Mean bitwidths and the expected $cost relative to its budget, over the steps. The
controller raises the weight of the cost until the budget holds.</p>
</html>
""")


def write(workdir: pathlib.Path, metric: str, results: Mapping[str, Any]) -> None:
    """Writes `report/index.html` and its figures.

    Args:
      workdir: The folder of the run.
      metric: Title of the task's figure.
      results: The content of `hqnas/results.json`.
    """
    cost = COSTS[results["cost_name"]]
    drawn = {
        "accuracy": accuracy_over_cost(results, metric),
        "layers": layers(results),
        "search": curves(workdir, results),
    }
    for name, figure in drawn.items():
        artefacts.write(workdir / "report" / f"{name}.svg", figure.encode())
    page = _PAGE.substitute(
        drawn,
        style=STYLE,
        name=html.escape(workdir.name),
        metric=metric,
        cost=cost.title,
        device=results["device"],
        fp32=f"{results['fp32']:.2f}",
        int8=f"{results['int8']:.2f}",
        rows="\n".join(_row(row, results["cost_name"]) for row in results["records"]),
    )
    artefacts.write(workdir / "report" / "index.html", page.encode())
    artefacts.write_json(workdir / "report" / "results.json", results)


def _row(row: Mapping[str, Any], name: str) -> str:
    cost = COSTS[name]
    cells = (
        f"{row['budget_setting']:g}",
        f"{row['seed']}",
        f"{row[name] / cost.per_shown_unit:.4g} {cost.shown_unit}",
        f"{row['size_bytes'] / 1e3:.1f} kB",
        f"{row['accuracy']:.2f}",
        f"{row['search_accuracy']:.2f}",
        f"<code>{row['subnet']}</code>",
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


@style.plain
def accuracy_over_cost(results: Mapping[str, Any], metric: str) -> str:
    """Accuracy over the cost of the trained networks, of the draws, and of the teacher."""
    cost = COSTS[results["cost_name"]]
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = new_axes(figure, 1, 1, 1)
    for number, row in enumerate(results["records"]):
        x = [c / cost.per_shown_unit for _, c, _ in row["scored"]]
        label = "drawn, shared weights" if not number else None
        axes.plot(x, [a for *_, a in row["scored"]], "o", mfc="none", color=FAINT, label=label)
    x = [row[results["cost_name"]] / cost.per_shown_unit for row in results["records"]]
    axes.plot(
        x, [row["accuracy"] for row in results["records"]], "o", color=SUBNET, label="trained"
    )
    teacher = results["teacher_cost"] / cost.per_shown_unit
    axes.plot([teacher], [results["int8"]], "s", color=TEACHER, label="teacher, 8 bits")
    axes.set(xlabel=f"{cost.title} ({cost.shown_unit})", ylabel=f"{metric} (%)")
    axes.legend(fontsize=8, frameon=False)
    return svg(figure)


@style.plain
def layers(results: Mapping[str, Any]) -> str:
    """A panel for each network: bits of weights and of activations, and the op, by layer."""
    records = results["records"]
    figure = Figure(figsize=(11, 2.2 * len(records)), layout="constrained")
    for number, row in enumerate(records, 1):
        axes = new_axes(figure, len(records), 1, number)
        choices = [choice for block in space.parse_subnet(row["subnet"]) for choice in block]
        places = np.arange(len(choices))
        axes.bar(places, [c.w_bits for c in choices], color=SUBNET, width=0.8)
        axes.bar(places, [-c.a_bits for c in choices], color=FAINT, width=0.8)
        axes.axhline(0, color=INK, lw=0.8)
        axes.set_xticks(places, [str(c.op) for c in choices], fontsize=7, rotation=60)
        axes.set(ylim=(-9, 9), ylabel="a_bits | w_bits")
        title = f"budget {row['budget_setting']:g}, seed {row['seed']}"
        axes.set_title(title, loc="left", fontsize=10)
    return svg(figure)


@style.plain
def curves(workdir: pathlib.Path, results: Mapping[str, Any]) -> str:
    """Mean bitwidths, and the expected cost relative to its budget, over the steps."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    bits, over = new_axes(figure, 1, 2, 1), new_axes(figure, 1, 2, 2)
    for number, row in enumerate(results["records"]):
        found = read_metrics(workdir, f"hqnas/{row['stage']}")
        steps, colour = sorted(found), f"C{number}"
        label = f"budget {row['budget_setting']:g}, seed {row['seed']}"
        bits.plot(steps, [found[s]["w_bits"] for s in steps], color=colour, label=label)
        bits.plot(steps, [found[s]["a_bits"] for s in steps], color=colour, ls="--")
        name = f"{results['cost_name']}_over_budget"
        over.plot(steps, [100 * found[s][name] for s in steps], color=colour)
    bits.set(xlabel="step", ylabel="mean bits (dashed: activations)")
    over.axhline(0, color=INK, lw=0.8)
    over.set(xlabel="step", ylabel="expected cost above the budget (%)")
    bits.legend(fontsize=8, frameon=False)
    return svg(figure)
