"""The page of an audit: which score ranks networks as training does."""

import html
import pathlib
import string
from collections.abc import Mapping
from typing import Any

import numpy as np

from qnas_jax.report import style
from qnas_jax.report.figures import BLOCKS, FAINT, INK, new_axes, svg
from qnas_jax.report.page import STYLE

# isort: split
from matplotlib.figure import Figure

from qnas_jax.run import artefacts

COLUMNS = 4  # of the panels
_PAGE = string.Template("""<!doctype html>
<html lang="en"><meta charset="utf-8">
<title>qnas_jax: $name, what ranks what</title>
<style>$style</style>
<h1>$name: what ranks what</h1>
<p>$paragraph</p>
<table>
<tr><th>score</th><th>tau</th><th>pairs of equal size</th><th>pairs of equal bitwidths</th>
<th>one training</th><th>regret</th></tr>
$rows
</table>
<p class="note">Kendall's tau-b between each score and the mean $metric after training and
quantization, with the 95 % interval of a bootstrap over the networks. Sizes count as equal within
$band %. Regret: what the network with the best score lacks of the best network, in points. Weighted
sums and the network are fitted on all other networks (leave-one-out). All networks begin as
the supernet's blocks, which the NSR scores: the truth is that of this pipeline. The teacher and the
blocks have seen the images of the one-shot scores, the one-shot supernets have not.$ceiling</p>
<h2>$metric over each score</h2>
$scatter
<p class="note">A point is a network, its bar the range over the seeds. Colours are bitwidths.</p>
<h2>Networks</h2>
<table>
<tr><th>drawn</th><th>size, kB</th><th>$metric float</th><th>$metric quantized</th>
<th class="text">subnet</th></tr>
$networks
</table>
</html>
""")


def write(workdir: pathlib.Path, results: Mapping[str, Any]) -> None:
    """Writes `audit/index.html` and its figure.

    Args:
      workdir: The folder of the run.
      results: The content of `audit/results.json`.
    """
    figure = scatter(results)
    noise = results["noise"]
    ceiling = (
        " Another training: the tau between two seeds of the same networks; the column of one "
        "training compares scores with it. The same network differs by "
        f"{noise:.2f} points between seeds (standard deviation)."
        if noise is not None
        else ""
    )
    ranked = [*results["scores"].values()]
    ranked += [results["ceiling"]] if results["ceiling"] else []
    page = _PAGE.substitute(
        style=STYLE,
        name=html.escape(workdir.name),
        paragraph=html.escape(results["paragraph"]),
        metric=results["title"],
        band=f"{100 * results['band']:g}",
        ceiling=ceiling,
        scatter=figure,
        rows="\n".join(map(_score, sorted(ranked, key=ranking_place))),
        networks="\n".join(map(_network, [*results["teachers"], *results["subnets"]])),
    )
    artefacts.write(workdir / "audit" / "ranking.svg", figure)
    artefacts.write(workdir / "audit" / "index.html", page)


def _score(row: Mapping[str, Any]) -> str:
    taus = [row, row["equal_size"], row["equal_bits"]]
    single = "none" if row["one_seed"] is None else f"{row['one_seed']:.2f}"
    return _cells([row["title"], *map(interval, taus), single, f"{row['regret']:.2f}"])


def interval(found: Mapping[str, Any]) -> str:
    """Returns a tau and its interval as text; "none" where all are tied."""
    values = [found[name] for name in ("tau", "low", "high")]
    return "none" if None in values else "{:.2f} [{:.2f}, {:.2f}]".format(*values)


def ranking_place(row: Mapping[str, Any]) -> float:
    """Returns what sorts scores, the best first and those without a tau last."""
    return 2.0 if row["tau"] is None else -row["tau"]


def _network(row: Mapping[str, Any]) -> str:
    means = [f"{np.mean(row[name]):.2f}" for name in ("fp32", "quantized")]
    cells = _cells([row["kind"], f"{row['size_bytes'] / 1e3:.1f}", *means])
    return cells.replace("</tr>", f'<td class="text">{row["subnet"]}</td></tr>')


def _cells(cells: list[str]) -> str:
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


@style.plain
def scatter(results: Mapping[str, Any]) -> str:
    """A panel for each score: the accuracy of every network over it.

    Args:
      results: The content of `audit/results.json`.
    """
    scores, subnets = results["scores"], results["subnets"]
    lines = -(-len(scores) // COLUMNS)
    figure = Figure(figsize=(12, 2.9 * lines), layout="constrained")
    truth = np.array([subnet["quantized"] for subnet in subnets])
    kinds = sorted({subnet["bits"] for subnet in subnets})
    colours = dict(zip(kinds, [*BLOCKS, FAINT, INK], strict=False))
    for place, (name, row) in enumerate(scores.items(), 1):
        axes = new_axes(figure, lines, COLUMNS, place)
        x = np.array([subnet["scores"][name] for subnet in subnets])
        for kind in kinds:
            own = np.array([subnet["bits"] == kind for subnet in subnets])
            middle = truth[own].mean(1)
            around = np.abs(np.stack([truth[own].min(1), truth[own].max(1)]) - middle[None])
            axes.errorbar(
                x[own], middle, around, fmt="o", ms=3.5, lw=0.8,
                color=colours.get(kind, FAINT), label=kind,
            )  # fmt: skip
        axes.set_title(f"{row['title']}\n{interval(row)}", loc="left", fontsize=8)
        axes.tick_params(labelsize=7)
        if place == 1:
            axes.legend(fontsize=7, frameon=False)
            axes.set_ylabel(f"{results['title']} (%)", fontsize=8)
    return svg(figure)
