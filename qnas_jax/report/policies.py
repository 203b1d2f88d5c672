"""The page of a search for bitwidths, and its figures."""

import html
import pathlib
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qnas_jax.metrics import Metric
from qnas_jax.report import figures_policies as figures
from qnas_jax.report.page import STYLE
from qnas_jax.run import artefacts
from qnas_jax.run.log import duration
from qnas_jax.run.stage import read_json, reading
from qnas_jax.space import COSTS, Conv

_PAGE = string.Template("""<!doctype html>
<html lang="en"><meta charset="utf-8">
<title>qnas_jax: $name</title>
<style>$style</style>
<h1>$name</h1>
<p class="note">$metric in float $fp32 %, with 8 bits everywhere $int8 %. A budget of 4 is what 4
bits cost everywhere, a budget of 0.6 that share of the cost of 8 bits. $bounds Every method has the
same network, the same quantization and the same images to score policies; $metric below is of other
images. The spread is the standard deviation over seeds.</p>
<table>
<tr><th>device</th><th>cost</th><th>budget</th><th>method</th><th>cost of the policy</th>
<th>$metric</th><th>spread</th><th>seeds</th><th>policies scored</th></tr>
$rows
</table>
<h2>Accuracy over cost</h2>
$accuracy
<h2>Bits by layer</h2>
$bits
<p class="note">The agent's best policy for each device at the lowest budget: bits of weights (above
the line) and of the activations that a layer reads (below it). Dark bars are depthwise layers. The
line is how many operations a layer computes for each byte that it reads, at 8 bits.</p>
<h2>Learning</h2>
$curves
<p class="note">Accuracy of each episode's policy on the images of the rewards: mean over the seeds
of each budget, averaged over 20 episodes (fewer of a short search), and the band of a standard
deviation.</p>
<h2>One device's policy on another</h2>
$transfers
<h2>Files</h2>
$files
<p class="note">Agents and the other methods: $seconds.</p>
</html>
""")


_BOUNDS = {
    "linear": "The first and the last layer keep 8 bits.",
    "kmeans": "Weights are shared; activations stay in float.",
}


def metrics_of(folder: pathlib.Path, metric: Metric) -> dict[str, Any]:
    """Returns the score of a trained network, in float and quantized, and its size."""
    names = {"fp32": f"{metric.name}_fp32", "quantized": f"{metric.name}_quantized"}
    names |= {"size_bytes": "size_bytes", "encoder_size_bytes": "encoder_size_bytes"}
    held = read_json(folder / "metrics.json", *names.values())
    return {name: held[key] for name, key in names.items()}


def grouped(records: Sequence[dict[str, Any]]) -> dict[tuple, list[dict[str, Any]]]:
    """Returns the records of each (device, cost, budget, method), which differ in their seeds."""
    found: dict[tuple, list[dict[str, Any]]] = {}
    for record in records:
        key = tuple(record[name] for name in ("device", "cost_name", "budget_setting", "method"))
        found.setdefault(key, []).append(record)
    order = {key: (key[:2], found[key][0]["budget"], number) for number, key in enumerate(found)}
    return {key: found[key] for key in sorted(found, key=lambda key: order[key])}


def write(
    workdir: pathlib.Path,
    metric: str,
    results: Mapping[str, Any],
    convs: Sequence[Conv],
    goals: Sequence[Any],
) -> None:
    """Writes `report/index.html` and its figures.

    Args:
      workdir: The folder of the run.
      metric: Title of the task's figure.
      results: The content of `haq/results.json`.
      convs: The convolutions of the network, in the order of the policies.
      goals: Costs and budgets, in the order of the agents.
    """
    records = results["records"]
    best = _best(records)
    drawn = {
        "accuracy": figures.accuracy_over_cost(grouped(records), results["fp32"], metric),
        "bits": figures.bits_by_layer(best, convs) if best else "<p>No agent has run.</p>",
        "curves": _curves(workdir, goals, metric),
    }
    for name, svg in drawn.items():
        artefacts.write(workdir / "report" / f"{name}.svg", svg.encode())
    page = _PAGE.substitute(
        drawn,
        style=STYLE,
        name=html.escape(workdir.name),
        metric=metric,
        fp32=f"{results['fp32']:.2f}",
        int8=f"{results['int8']:.2f}",
        rows="\n".join(_row(key, rows) for key, rows in grouped(records).items()),
        bounds=_BOUNDS[results["quantizer"]],
        transfers=_transfers(results["transfers"]),
        files=_files(workdir, results["networks"], metric),
        seconds=duration(results["seconds"]["haq"]),
    )
    artefacts.write(workdir / "report" / "index.html", page.encode())
    artefacts.write_json(workdir / "report" / "results.json", results)


def _best(records: Sequence[dict[str, Any]]) -> dict[str, list[list[int]]]:
    """The agents' best policy for each device and cost at its lowest budget, by title."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        if record["method"] == "haq":
            title = f"{record['device']}, {COSTS[record['cost_name']].title}"
            rank = (-record["budget"], record["reward_accuracy"])
            best = found.get(title)
            if best is None or rank > (-best["budget"], best["reward_accuracy"]):
                found[title] = record
    return {title: record["bits"] for title, record in found.items()}


def _curves(workdir: pathlib.Path, goals: Sequence[Any], metric: str) -> str:
    path = workdir / "haq" / "curves.npz"
    if not path.exists():
        return ""
    with reading(path) as content, np.load(content) as file:
        accuracy = file["accuracy"]
    by_goal = np.split(accuracy, len(goals), axis=1)
    return figures.curves({str(g): a for g, a in zip(goals, by_goal, strict=True)}, metric)


def _row(key: tuple, rows: Sequence[dict[str, Any]]) -> str:
    device, name, budget, method = key
    cost, scores = COSTS[name], [row["accuracy"] for row in rows]
    spent = np.mean([row["cost"] for row in rows]) / cost.per_shown_unit
    tried = np.mean([row["evaluations"] for row in rows])
    cells = (
        f'<td class="text">{device}</td>', f"<td>{cost.title}</td>", f"<td>{budget:g}</td>",
        f"<td>{method}</td>", f"<td>{spent:.4g} {cost.shown_unit}</td>",
        f"<td>{np.mean(scores):.2f}</td>", f"<td>{np.std(scores):.2f}</td>",
        f"<td>{len(rows)}</td>", f"<td>{tried:.0f}</td>",
    )  # fmt: skip
    better = ' class="better"' if method == "haq" else ""
    return f"<tr{better}>{''.join(cells)}</tr>"


def _transfers(rows: Sequence[dict[str, Any]]) -> str:
    """A table: rows are the device that a policy was found for, columns where it runs."""
    text = []
    for name, budget in dict.fromkeys((r["cost_name"], r["budget_setting"]) for r in rows):
        own = [r for r in rows if (r["cost_name"], r["budget_setting"]) == (name, budget)]
        devices = list(dict.fromkeys(r["on"] for r in own))
        if len(devices) < 2:
            continue
        unit, shown = COSTS[name].per_shown_unit, COSTS[name].shown_unit
        head = "".join(f"<th>on {device}, {shown}</th>" for device in devices)
        text.append(f"<table><tr><th>{COSTS[name].title}, budget {budget:g}</th>{head}</tr>")
        for found_for in devices:
            cells = {r["on"]: r["cost"] / unit for r in own if r["found_for"] == found_for}
            values = "".join(f"<td>{cells[device]:.4g}</td>" for device in devices)
            text.append(f"<tr><td>found for {found_for}</td>{values}</tr>")
        text.append("</table>")
    return "\n".join(text) or "<p>No cost is known for two devices.</p>"


def _files(workdir: pathlib.Path, networks: Mapping[str, Any], metric: str) -> str:
    if not networks:
        return "<p>None.</p>"
    rows = [
        f'<tr><td class="text">export/{name}/</td><td>{one["size_bytes"] / 1e3:.1f}</td>'
        f"<td>{one['quantized']:.2f}</td></tr>"
        for name, one in networks.items()
    ]
    head = f"<tr><th>folder</th><th>size, kB</th><th>{metric}, as the file computes it</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"
