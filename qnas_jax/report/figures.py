"""The figures of the report, as SVG text or PNG bytes."""

import io
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qnas_jax.report import style

# isort: split
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from qnas_jax import space
from qnas_jax.data import labels
from qnas_jax.search.front import Point
from qnas_jax.space import COSTS

INK, FAINT, GRID = "#222222", "#8a8a8a", "#e3e3e3"
TEACHER, SUBNET = "#b4432b", "#1f6f8b"
BLOCKS = ("#1f6f8b", "#7fb8d4", "#5a9a5a", "#e0a030", "#d0663a", "#7a4a86")
KERNELS = ("#bcd9e6", "#5fa3c3", "#1f6f8b", "#12465a")  # darker for larger kernels


def new_axes(figure: Figure, *place):
    """Adds axes at a place of a figure, in the style of the report."""
    axes = figure.add_subplot(*place)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=INK)
    return axes


def svg(figure: Figure) -> str:
    """The figure as SVG text."""
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


@style.plain
def front(
    points: Sequence[Point],
    teachers: Mapping[str, dict[str, Any]],
    subnets: Sequence[dict],
    metric: str,
    cost: str = "size_bytes",
) -> str:
    """The predicted front (NSR over a cost), and the score after training over the same cost.

    Args:
      points: The front.
      teachers: The figures of the teachers by name; they are drawn over the cost if they have it.
      subnets: The figures of the retrained subnets, numbered in this order.
      metric: The name of the score.
      cost: The name of the cost.
    """
    title, unit = _axis(cost)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    predicted = new_axes(figure, 1, 2, 1)
    x = [p.costs[cost] / unit for p in points]
    predicted.step(x, [p.nsr for p in points], where="pre", color=SUBNET, alpha=0.35)
    predicted.plot(x, [p.nsr for p in points], ".", color=SUBNET, label="front")
    picked = [s[cost] / unit for s in subnets]
    predicted.plot(
        picked, [s["nsr"] for s in subnets], "o", mfc="none", mec=INK, ms=9, label="retrained"
    )
    for number, subnet in enumerate(subnets, 1):
        _label(predicted, number, subnet[cost] / unit, subnet["nsr"])
    predicted.set_ylabel("NSR summed over blocks (lower is better)")
    predicted.set_title("Predicted", loc="left", fontsize=11)

    measured = new_axes(figure, 1, 2, 2)
    series = [
        (name, [one], TEACHER, mark)
        for (name, one), mark in zip(teachers.items(), "os", strict=False)
    ]
    for name, values, colour, mark in (*series, ("subnets", subnets, SUBNET, "o")):
        known = [v for v in values if cost in v]
        for key, kind, fill in (("fp32", "float", "none"), ("quantized", "quantized", colour)):
            measured.plot(
                [v[cost] / unit for v in known], [v[key] for v in known],
                mark, mfc=fill, mec=colour, label=f"{name}, {kind}" if known else None,
            )  # fmt: skip
    for number, subnet in enumerate(subnets, 1):
        _label(measured, number, subnet[cost] / unit, subnet["quantized"])
    # The better one is to beat.
    teacher = max(teachers.values(), key=operator.itemgetter("quantized"))
    if cost in teacher:
        predicted.axvline(teacher[cost] / unit, color=TEACHER, ls="--", lw=1, label="teacher")
        measured.axvline(teacher[cost] / unit, color=TEACHER, ls="--", lw=1)
    label = None if cost in teacher else "teacher, quantized"
    measured.axhline(teacher["quantized"], color=TEACHER, ls="--", lw=1, label=label)
    measured.set_ylabel(f"{metric}, validation (%)")
    measured.set_title("Measured after training", loc="left", fontsize=11)
    for axes in (predicted, measured):
        axes.set_xlabel(title)
        axes.legend(fontsize=8, frameon=False)
    return svg(figure)


def _axis(cost: str) -> tuple[str, float]:
    """The title of a cost's axis, and its unit in the cost's."""
    shown = COSTS[cost]
    return f"{shown.title} of the quantized network ({shown.shown_unit})", shown.per_shown_unit


def _label(axes, number, x, y):
    axes.annotate(
        str(number), (x, y), xytext=(6, 5), textcoords="offset points", fontsize=9, color=INK
    )


@style.plain
def architectures(teacher: space.Subnet, subnets: Sequence[space.Subnet]) -> str:
    """A row for each network, a bar for each layer, its bitwidths below the bar.

    A taller bar is a larger expansion, a darker one a larger kernel.
    """
    rows = [("teacher", teacher), *((str(i), s) for i, s in enumerate(subnets, 1))]
    deepest = [max(len(s[b]) for _, s in rows) for b in range(len(teacher))]
    kernels = sorted({c.op.kernel for _, s in rows for block in s for c in block})
    tallest = max(c.op.expansion for _, s in rows for block in s for c in block)
    figure = Figure(figsize=(11, 0.4 + 0.72 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for row, (name, subnet) in enumerate(rows):
        y = -1.6 * row
        axes.text(-0.4, y + 0.4, name, ha="right", va="center", fontsize=10, color=INK)
        x = 0.0
        for block, choices in enumerate(subnet):
            for i, (op, w_bits, a_bits) in enumerate(choices):
                colour = KERNELS[kernels.index(op.kernel) % len(KERNELS)]
                height = op.expansion / tallest
                axes.add_patch(Rectangle((x + i, y), 0.86, height, color=colour))
                axes.text(
                    x + i + 0.43, y + 0.08, str(op.kernel), ha="center", fontsize=8,
                    color=INK if kernels.index(op.kernel) == 0 else "white",
                )  # fmt: skip
                bits = f"{w_bits}" if w_bits == a_bits else f"{w_bits}/{a_bits}"
                axes.text(x + i + 0.43, y - 0.3, bits, ha="center", fontsize=6.5, color=FAINT)
            if row == 0:
                centre = x + deepest[block] / 2
                axes.text(centre, 1.25, f"block {block + 1}", ha="center", fontsize=9, color=INK)
            x += deepest[block] + 0.7
    axes.set_xlim(-2.2, x)
    axes.set_ylim(-1.6 * (len(rows) - 1) - 0.5, 1.7)
    axes.set_axis_off()
    return svg(figure)


@style.plain
def supernet(curves: Mapping[int, Mapping[str, float]]) -> str:
    """The training NSR of each block over the steps, from the metrics of each logged step."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    axes = new_axes(figure)
    names = [name for name in next(iter(curves.values()), {}) if name.startswith("nsr_block")]
    for name, colour in zip(names, BLOCKS, strict=False):
        values = [found[name] for found in curves.values()]
        label = f"block {name.removeprefix('nsr_block')}"
        axes.plot(list(curves), values, color=colour, lw=1.4, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="training step", ylabel="NSR of the block (lower is better)")
    if names:
        figure.legend(loc="outside right center", fontsize=9, frameon=False)
    return svg(figure)


@style.plain
def by_class(by_network: Mapping[str, Sequence[int | float | None]], classes: Sequence[str]) -> str:
    """A score by class (columns) and network (rows), percent; None where a class never occurs."""
    names, values = list(by_network), np.array(list(by_network.values()), float)
    figure = Figure(figsize=(11, 1.3 + 0.32 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(values, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        text = "-" if np.isnan(value) else f"{value:.0f}"
        colour = "white" if value > 60 else INK
        axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color=colour)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_xticks(range(values.shape[1]), classes, rotation=40, ha="right", fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return svg(figure)


@style.plain
def samples(
    images: np.ndarray, predicted: Mapping[str, np.ndarray], classes: Sequence[str]
) -> bytes:
    """Images (columns) and their classes (rows, by name) as a PNG.

    Args:
      images: uint8[n, height, width, 3].
      predicted: Class of each pixel, int[n, height, width], or of each image, int[n], by name.
      classes: Names of the classes.
    """
    if next(iter(predicted.values())).ndim == 1:
        return _named(images, predicted, classes)
    colours = labels.PALETTE if tuple(classes) == labels.NAMES else _colours(len(classes))
    count, (height, width) = len(images), images.shape[1:3]
    rows = {"image": images, **{name: colours[m] for name, m in predicted.items()}}
    figure = Figure(figsize=(11, 11 / count * height / width * len(rows)))
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02)
    grid = figure.subplots(len(rows), count, squeeze=False)
    for row, (name, drawn) in enumerate(rows.items()):
        for column in range(count):
            axes = grid[row][column]
            axes.imshow(drawn[column], interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        grid[row][0].set_ylabel(name, fontsize=9)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130)
    return out.getvalue()


def _colours(count: int) -> np.ndarray:
    """A colour for each class, uint8[256, 3]; black for what is ignored."""
    found = np.zeros((256, 3), np.uint8)
    hues = np.arange(count) * 0.618034 % 1  # neighbours lie far apart
    strong = np.where(np.arange(count) % 2, 0.95, 0.65)
    found[:count] = 255 * hsv_to_rgb(np.stack([hues, np.full(count, 0.6), strong], -1))
    return found


def _named(
    images: np.ndarray, predicted: Mapping[str, np.ndarray], classes: Sequence[str]
) -> bytes:
    """Images with the names of their classes below; a wrong one is red."""
    figure = Figure(figsize=(11, 11 / len(images) + 0.25 * len(predicted)), layout="constrained")
    true = next(iter(predicted.values()))
    for i, axes in enumerate(figure.subplots(1, len(images), squeeze=False)[0]):
        axes.imshow(images[i], interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        for row, (name, found) in enumerate(predicted.items(), 1):
            colour = INK if found[i] == true[i] else TEACHER
            text, below = f"{name}: {classes[found[i]]}", (0, -13 * row)
            axes.annotate(
                text, (0, 0), below, "axes fraction", "offset points", fontsize=9, color=colour
            )
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130, bbox_inches="tight")
    return out.getvalue()


@style.plain
def fronts(by_policy: Mapping[str, Sequence[Point]]) -> str:
    """The front of each quantization policy, NSR over size."""
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = new_axes(figure, 1, 1, 1)
    title, unit = _axis("size_bytes")
    for name, points in by_policy.items():
        sizes = [point.costs["size_bytes"] / unit for point in points]
        axes.step(sizes, [point.nsr for point in points], where="pre", label=name)
    axes.set(xlabel=title, ylabel="NSR summed over blocks")
    axes.legend(fontsize=8, frameon=False)
    return svg(figure)


@style.plain
def enough_images(curve: Sequence[tuple[int, float, float, float]], all_images: int) -> str:
    """Agreement of tables from few images with the table from all, over the number of images."""
    figure = Figure(figsize=(6.5, 3.8), layout="constrained")
    axes = new_axes(figure, 1, 1, 1)
    images, mean, least, share = zip(*curve, strict=True)
    axes.plot(images, mean, "o-", color=SUBNET, label="Kendall's tau, mean of the blocks")
    axes.plot(images, least, "o--", color=SUBNET, alpha=0.5, label="of the worst block")
    axes.plot(images, share, "s-", color=TEACHER, label="share of the front found")
    axes.set_xscale("log", base=2)
    axes.set_xticks(images, [str(n) for n in images])
    axes.set(xlabel=f"images (compared with {all_images})", ylim=(0, 1.02))
    axes.legend(fontsize=8, frameon=False)
    return svg(figure)


@style.plain
def audit(latency: Sequence[tuple[float, float]], size: Sequence[tuple[float, float]]) -> str:
    """Figures of subnets by the tables over measured ones: latency (ms) and size (kB)."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    parts = (("Latency", "ms", latency), ("Size of the file", "kB", size))
    for column, (title, unit, pairs) in enumerate(parts, 1):
        axes = new_axes(figure, 1, 2, column)
        table, measured = np.array(pairs).T
        ends = [min(table.min(), measured.min()), max(table.max(), measured.max())]
        axes.plot(ends, ends, color=FAINT, lw=1, label="equal")
        axes.plot(measured, table, "o", color=SUBNET, ms=4, label="a subnet")
        axes.set(xlabel=f"measured ({unit})", ylabel=f"sum of the table ({unit})")
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_aspect("equal")
        axes.legend(fontsize=8, frameon=False)
    return svg(figure)
