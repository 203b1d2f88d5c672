"""The figures of a search for bitwidths, as SVG text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qnas_jax.report import style
from qnas_jax.report.figures import BLOCKS, FAINT, INK, SUBNET, new_axes, svg

# isort: split
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qnas_jax.space import COSTS, Conv

MARKS = {
    "haq": "o", "uniform": "s", "random": "x", "greedy": "v", "exact": "^", "evolution": "D",
    "lut": "P",
}  # fmt: skip
COLOURS = dict(zip(MARKS, (*BLOCKS, INK), strict=True))
WINDOW = 20  # episodes of which a curve shows the mean


@style.plain
def accuracy_over_cost(
    groups: Mapping[tuple, Sequence[dict[str, Any]]], fp32: float, metric: str
) -> str:
    """A panel for each device and cost: accuracy of each method over the cost, with its spread.

    Args:
      groups: Records by (device, cost, budget, method).
      fp32: The accuracy in float.
      metric: Its name.
    """
    panels = list(dict.fromkeys(key[:2] for key in groups))
    figure = Figure(figsize=(11, 3.8 * -(-len(panels) // 2)), layout="constrained")
    for place, (device, name) in enumerate(panels, 1):
        axes, cost = new_axes(figure, -(-len(panels) // 2), 2, place), COSTS[name]
        axes.axhline(fp32, color=FAINT, lw=1, ls="--", label="float")
        for method, mark in MARKS.items():
            held = [rows for key, rows in groups.items() if key == (device, name, key[2], method)]
            if not held:
                continue
            x = [np.mean([r["cost"] for r in rows]) / cost.per_shown_unit for rows in held]
            scores = [[r["accuracy"] for r in rows] for rows in held]
            axes.errorbar(
                x, [np.mean(s) for s in scores], [np.std(s) for s in scores], marker=mark,
                color=COLOURS[method], label=method, lw=1.2 if method == "haq" else 0.6,
                ms=6, capsize=2, mfc="none" if method != "haq" else None,
            )  # fmt: skip
        axes.set_title(device, loc="left", fontsize=11)
        axes.set(xlabel=f"{cost.title} ({cost.shown_unit})", ylabel=f"{metric} (%)")
        axes.legend(fontsize=8, frameon=False)
    return svg(figure)


@style.plain
def bits_by_layer(policies: Mapping[str, Sequence[Sequence[int]]], convs: Sequence[Conv]) -> str:
    """A panel for each policy: bits of weights and activations by layer, and operations per byte.

    Args:
      policies: Bits of each layer by title.
      convs: The layers.
    """
    figure = Figure(figsize=(11, 2.6 * max(len(policies), 1)), layout="constrained")
    places = np.arange(len(convs))
    dark = np.array([conv.groups > 1 for conv in convs])
    intensity = [_operations_per_byte(conv) for conv in convs]
    for row, (title, bits) in enumerate(policies.items(), 1):
        axes, values = new_axes(figure, len(policies), 1, row), np.array(bits)
        for sign, column in ((1, 0), (-1, 1)):
            for mask, colour in ((~dark, "#9cc6d6"), (dark, SUBNET)):
                axes.bar(places[mask], sign * values[mask, column], 0.8, color=colour)
        axes.axhline(0, color=INK, lw=0.8)
        ticks = [-8, -4, 0, 4, 8]
        axes.set_yticks(ticks, [str(abs(t)) for t in ticks])
        axes.set_ylabel("activations | weights", fontsize=9)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlim(-0.7, len(convs) - 0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        right = axes.twinx()
        right.plot(places, intensity, color="#d0663a", lw=1)
        right.set_yscale("log")
        right.set_ylabel("operations per byte", fontsize=9, color="#d0663a")
        right.spines[["top"]].set_visible(False)
        right.tick_params(labelsize=8, colors="#d0663a")
        if row == len(policies):
            axes.set_xlabel("layer")
    return svg(figure)


def _operations_per_byte(conv: Conv) -> float:
    """Operations of a layer for each byte of its weights and of what it reads, at 8 bits."""
    read = conv.weights + conv.in_height * conv.in_width * conv.in_channels
    return 2 * conv.macs / read


@style.plain
def curves(by_goal: Mapping[str, np.ndarray], metric: str) -> str:
    """Accuracy over the episodes: for each goal the mean over seeds, and a band of a deviation.

    Args:
      by_goal: float[episodes, seeds] by title.
      metric: Its name.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = new_axes(figure, 1, 1, 1)
    for number, (title, accuracy) in enumerate(by_goal.items()):
        window = max(1, min(WINDOW, len(accuracy) // 4))
        kernel = np.ones(window) / window
        smooth = np.stack([np.convolve(a, kernel, "valid") for a in accuracy.T])
        x, mean, std = np.arange(smooth.shape[1]) + window, smooth.mean(0), smooth.std(0)
        colour = f"C{number}"
        axes.plot(x, mean, color=colour, lw=1.3, label=title)
        axes.fill_between(x, mean - std, mean + std, color=colour, alpha=0.15, lw=0)
    axes.set(xlabel="episode", ylabel=f"{metric} (%)")
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    return svg(figure)
