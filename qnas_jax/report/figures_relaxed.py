"""The figures of a search by gradient, as SVG text."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qnas_jax.report import style
from qnas_jax.report.figures import BLOCKS, FAINT, INK, SUBNET, TEACHER, new_axes, svg

# isort: split
from matplotlib.figure import Figure

from qnas_jax import space
from qnas_jax.run.log import read_metrics
from qnas_jax.space import COSTS

METHODS = {"hqnas": SUBNET, "bwnas": BLOCKS[3], "sequential": BLOCKS[5]}  # colours
KINDS = {"w": "bits of weights", "a": "bits of activations", "k": "ops"}  # by a name's beginning


def _panel(row: Mapping[str, Any]) -> tuple[str, str, bool]:
    return row["device"], row["cost_name"], "unadapted_accuracy" in row


@style.plain
def accuracy_over_cost(results: Mapping[str, Any], metric: str) -> str:
    """A panel for each device and cost: trained networks, the draws, and the teacher.

    Args:
      results: The content of `hqnas/results.json`.
      metric: Title of the task's figure.
    """
    panels = list(dict.fromkeys(map(_panel, results["records"])))
    figure = Figure(figsize=(11, 3.8 * -(-len(panels) // 2)), layout="constrained")
    for place, panel in enumerate(panels, 1):
        device, name, shifted = panel
        axes, cost = new_axes(figure, -(-len(panels) // 2), 2, place), COSTS[name]
        rows = [row for row in results["records"] if _panel(row) == panel]
        drawn = [(c / cost.per_shown_unit, a) for row in rows for _, c, a in row["scored"]]
        axes.plot(*zip(*drawn, strict=True), "o", mfc="none", color=FAINT, label="shared weights")
        for method, colour in METHODS.items():
            own = [row for row in rows if row["method"] == method]
            trained = [(row[name] / cost.per_shown_unit, row["accuracy"]) for row in own]
            if trained:
                axes.plot(*zip(*trained, strict=True), "o", color=colour, label=method)
        teacher = rows[0]["teacher_cost"] / cost.per_shown_unit
        if not shifted:
            axes.plot([teacher], [results["int8"]], "s", color=TEACHER, label="teacher, 8 bits")
        title = f"{device}, shifted images" if shifted else device
        axes.set_title(title, loc="left", fontsize=11)
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


@style.plain
def probabilities(workdir: pathlib.Path, name: str) -> str:
    """The mean probability of each candidate over the steps of a search, stacked.

    Args:
      workdir: The folder of the run.
      name: Of the search.
    """
    found = read_metrics(workdir, f"hqnas/{name}")
    steps = sorted(found)
    names = [key.removeprefix("p_") for key in found[steps[0]] if key.startswith("p_")]
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for place, (kind, title) in enumerate(KINDS.items(), 1):
        own = [one for one in names if one.startswith(kind)]
        axes = new_axes(figure, 1, 3, place)
        values = [[found[step][f"p_{one}"] for step in steps] for one in own]
        labels = [one if kind == "k" else one[1:] for one in own]
        axes.stackplot(steps, values, labels=labels, colors=BLOCKS, alpha=0.9)
        axes.set(xlabel="step", ylim=(0, 1), xlim=(steps[0], steps[-1]))
        axes.set_title(title, loc="left", fontsize=10)
        axes.legend(fontsize=8, ncol=3, loc="lower left")
    return svg(figure)


@style.plain
def timeline(records: Sequence[Mapping[str, Any]]) -> str:
    """A bar for each result: the seconds of its warm-up, its search and its training."""
    figure = Figure(figsize=(11, 1 + 0.32 * len(records)), layout="constrained")
    axes = new_axes(figure, 1, 1, 1)
    places, left = np.arange(len(records)), np.zeros(len(records))
    parts = (
        ("warmup_seconds", "warm-up", FAINT),
        ("seconds", "search or adaptation", SUBNET),
        ("train_seconds", "training", BLOCKS[1]),
    )
    for name, label, colour in parts:
        values = np.array([row.get(name, 0.0) for row in records])
        axes.barh(places, values, left=left, color=colour, label=label)
        left += values
    for place, (end, row) in enumerate(zip(left, records, strict=True)):
        axes.annotate(
            f"{row['accuracy']:.2f}", (end, place), (4, 0), textcoords="offset points",
            va="center", fontsize=8,
        )  # fmt: skip
    axes.set_yticks(places, [row["name"] for row in records], fontsize=8)
    axes.set(xlabel="seconds", xlim=(0, 1.08 * max(left)))
    axes.invert_yaxis()
    axes.legend(fontsize=8, frameon=False)
    return svg(figure)
