"""The page of a search by gradient, and its figures."""

import html
import pathlib
import string
from collections.abc import Mapping, Sequence
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
0.5 is half of the teacher's cost with 8 bits on that device; 0 is a preference. $metric below is
that of the trained network with its bitwidths, on the validation images.</p>
<table>
<tr><th>name</th><th>device</th><th>budget</th><th>cost</th><th>size</th><th>$metric</th>
<th>before training</th><th>subnet</th></tr>
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
<p class="note">Mean bitwidths and the expected cost relative to its budget, over the steps. The
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
    records = results["records"]
    drawn = {
        "accuracy": accuracy_over_cost(results, metric),
        "layers": layers(records),
        "search": curves(workdir, [row for row in records if not row["adapted_from"]]),
    }
    for name, figure in drawn.items():
        artefacts.write(workdir / "report" / f"{name}.svg", figure.encode())
    page = _PAGE.substitute(
        drawn,
        style=STYLE,
        name=html.escape(workdir.name),
        metric=metric,
        fp32=f"{results['fp32']:.2f}",
        int8=f"{results['int8']:.2f}",
        rows="\n".join(map(_row, records)),
    )
    artefacts.write(workdir / "report" / "index.html", page.encode())
    artefacts.write_json(workdir / "report" / "results.json", results)


def _row(row: Mapping[str, Any]) -> str:
    cost = COSTS[row["cost_name"]]
    cells = (
        row["name"],
        row["device"],
        f"{row['budget_setting']:g}",
        f"{row[row['cost_name']] / cost.per_shown_unit:.4g} {cost.shown_unit}",
        f"{row['size_bytes'] / 1e3:.1f} kB",
        f"{row['accuracy']:.2f}",
        f"{row['search_accuracy']:.2f}",
        f"<code>{row['subnet']}</code>",
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


@style.plain
def accuracy_over_cost(results: Mapping[str, Any], metric: str) -> str:
    """A panel for each device and cost: trained networks, the draws, and the teacher.

    Args:
      results: The content of `hqnas/results.json`.
      metric: Title of the task's figure.
    """
    panels = list(dict.fromkeys((r["device"], r["cost_name"]) for r in results["records"]))
    figure = Figure(figsize=(11, 3.8 * -(-len(panels) // 2)), layout="constrained")
    for place, (device, name) in enumerate(panels, 1):
        axes, cost = new_axes(figure, -(-len(panels) // 2), 2, place), COSTS[name]
        rows = [r for r in results["records"] if (r["device"], r["cost_name"]) == (device, name)]
        drawn = [(c / cost.per_shown_unit, a) for row in rows for _, c, a in row["scored"]]
        axes.plot(*zip(*drawn, strict=True), "o", mfc="none", color=FAINT, label="shared weights")
        trained = [(row[name] / cost.per_shown_unit, row["accuracy"]) for row in rows]
        axes.plot(*zip(*trained, strict=True), "o", color=SUBNET, label="trained")
        teacher = rows[0]["teacher_cost"] / cost.per_shown_unit
        axes.plot([teacher], [results["int8"]], "s", color=TEACHER, label="teacher, 8 bits")
        axes.set_title(device, loc="left", fontsize=11)
        axes.set(xlabel=f"{cost.title} ({cost.shown_unit})", ylabel=f"{metric} (%)")
        axes.legend(fontsize=8, frameon=False)
    return svg(figure)


@style.plain
def layers(records: Sequence[Mapping[str, Any]]) -> str:
    """A panel for each network: bits of weights and of activations, and the op, by layer."""
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
        axes.set_title(row["name"], loc="left", fontsize=10)
    return svg(figure)


@style.plain
def curves(workdir: pathlib.Path, records: Sequence[Mapping[str, Any]]) -> str:
    """Mean bitwidths, and the expected cost relative to its budget, over the steps."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    bits, over = new_axes(figure, 1, 2, 1), new_axes(figure, 1, 2, 2)
    for number, row in enumerate(records):
        found = read_metrics(workdir, f"hqnas/{row['name']}")
        steps, colour = sorted(found), f"C{number}"
        bits.plot(steps, [found[s]["w_bits"] for s in steps], color=colour, label=row["name"])
        bits.plot(steps, [found[s]["a_bits"] for s in steps], color=colour, ls="--")
        name = f"{row['cost_name']}_over_budget"
        over.plot(steps, [100 * found[s][name] for s in steps], color=colour)
    bits.set(xlabel="step", ylabel="mean bits (dashed: activations)")
    over.axhline(0, color=INK, lw=0.8)
    over.set(xlabel="step", ylabel="expected cost above the budget (%)")
    bits.legend(fontsize=8, frameon=False)
    return svg(figure)
