"""The page of a search by gradient."""

import html
import pathlib
import string
from collections.abc import Mapping
from typing import Any

from qnas_jax.report.figures_relaxed import (
    accuracy_over_cost,
    curves,
    layers,
    probabilities,
    timeline,
)
from qnas_jax.report.page import STYLE
from qnas_jax.run import artefacts
from qnas_jax.space import COSTS

_PAGE = string.Template("""<!doctype html>
<html lang="en"><meta charset="utf-8">
<title>qnas_jax: $name</title>
<style>$style</style>
<h1>$name</h1>
<p class="note">The teacher: $metric $fp32 % in float, $int8 % with 8 bits everywhere. A budget of
0.5 is half of the teacher's cost with 8 bits on that device; 0 is a preference. $metric below is
that of the trained network with its bitwidths, on the validation images. A number below
"unadapted" is that of the network before the adaptation, and both are then on shifted images.</p>
<table>
<tr><th>name</th><th>method</th><th>device</th><th>budget</th><th>cost</th><th>size</th><th>$metric</th>
<th>before training</th><th>unadapted</th><th>subnet</th></tr>
$rows
</table>
<h2>Accuracy over cost</h2>
$accuracy
<p class="note">Filled: the trained networks, by method. Open: all subnets that were drawn in the
end, scored with the shared weights on the held-out images.</p>
<h2>What each result took</h2>
$timeline
<p class="note">Seconds. A search needs the warm-up of its seed, which all its budgets share; an
adaptation needs a finished search. QA-BWNAS: its supernet, table and search. The number is
$metric.</p>
<h2>Ops and bits by layer</h2>
$layers
<h2>The search</h2>
$search
<p class="note">Mean bitwidths and the expected cost relative to its budget, over the steps. The
controller raises the weight of the cost until the budget holds.</p>
<h2>Probabilities</h2>
$probabilities
<p class="note">The mean over the layers of each candidate's probability, in the search
$first.</p>
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
    searches = [row for row in records if row["method"] == "hqnas" and not row["adapted_from"]]
    first = searches[0]["name"] if searches else ""  # none where results.json was deleted
    drawn = {
        "accuracy": accuracy_over_cost(results, metric),
        "layers": layers(records),
        "search": curves(workdir, searches),
        "probabilities": probabilities(workdir, first) if first else "",
        "timeline": timeline(records),
    }
    for name, figure in drawn.items():
        artefacts.write(workdir / "report" / f"{name}.svg", figure.encode())
    page = _PAGE.substitute(
        drawn,
        style=STYLE,
        name=html.escape(workdir.name),
        metric=metric,
        first=first,
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
        row["method"],
        row["device"],
        f"{row['budget_setting']:g}",
        f"{row[row['cost_name']] / cost.per_shown_unit:.4g} {cost.shown_unit}",
        f"{row['size_bytes'] / 1e3:.1f} kB",
        f"{row['accuracy']:.2f}",
        f"{row['search_accuracy']:.2f}",
        f"{row['unadapted_accuracy']:.2f}" if "unadapted_accuracy" in row else "",
        f"<code>{row['subnet']}</code>",
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
