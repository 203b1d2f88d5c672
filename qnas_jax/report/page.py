"""The report of a run: a page for people, and the same figures as JSON for programs."""

import base64
import html
import pathlib
import string
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from qnas_jax import space
from qnas_jax.data.batching import Batch
from qnas_jax.metrics import Metric
from qnas_jax.report import exports as files_table
from qnas_jax.report import figures, outcome
from qnas_jax.report.outcome import RETRAINED, TEACHER, Network, Outcome
from qnas_jax.run import artefacts
from qnas_jax.run.log import duration, read_metrics
from qnas_jax.run.stage import reading
from qnas_jax.search import front
from qnas_jax.space import COSTS

STYLE = """
 body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto;
        padding: 0 1em; }
 h1 { font-size: 1.5em; margin-bottom: 0; } h2 { font-size: 1.15em; margin-top: 2em; }
 table { border-collapse: collapse; font-size: 14px; }
 th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #e3e3e3; }
 th:first-child, td:first-child, td.text, th.text { text-align: left; }
 td.text { font: 11px/1.3 ui-monospace, monospace; overflow-wrap: anywhere; }
 tr.better { background: #e7f3ea; } .note { color: #666; font-size: 13px; }
 svg, img { max-width: 100%; height: auto; }
"""

_PAGE = string.Template("""<!doctype html>
<html lang="en"><meta charset="utf-8">
<title>qnas_jax: $name</title>
<style>$style</style>
<h1>$name</h1>
<p class="note">$summary</p>
$verdict
<table>
<tr><th>network</th><th>NSR</th><th>size, kB</th><th>of the teacher</th><th>encoder, kB</th>
<th>of the teacher</th>$costs<th>$metric float</th><th>$metric quantized</th>$aware
<th class="text">subnet</th></tr>
$rows
</table>
<p class="note">Sizes are of the quantized networks: weights at their bitwidth, their
scales, and a bias for each output channel. The encoder is the network without its head; only its
six blocks are searched. The NSR is summed over the blocks. $about_costs $about_teachers
$about_aware Green rows dominate the quantized teacher: no larger, no less accurate, and better in
one of the two.</p>
$files
<h2>Front</h2>
$fronts
<h2>Architectures</h2>
$architectures
<p class="note">A bar is a layer. A taller bar is a larger expansion, a darker one a larger kernel
(the number in it). Below it are the bitwidths of weights/activations (one number: both).</p>
<h2>Supernet</h2>
$supernet
<table>
<tr><th>block</th><th>training</th><th>largest</th><th>smallest</th><th>random, mean</th>
<th>standard deviation</th></tr>
$paths
</table>
<p class="note">The NSR of a block's output against the teacher's, unquantized; predicting each
channel's mean gives 1. The curves show single training steps, with their paths and images; the
first column is the last step. The other columns are single paths on validation images: the largest
kernels and expansions, the smallest, and up to ten random paths.</p>
<h2>$class_metric by class, quantized (%)</h2>
$classes
<h2>Validation images, quantized networks</h2>
<img alt="images, labels and predictions" src="data:image/png;base64,$samples">
<h2>Time</h2>
<table><tr><th>stage</th><th>time</th></tr>$times</table>
<p class="note">Seconds of networks that were trained or written at the same time are added up.</p>
</html>
""")


class _Drawn(NamedTuple):
    """The figures.

    Attributes:
      fronts: SVG of the front over each cost, by the file's name.
      others: SVG of the others, by the file's name, which is also the template's field.
      samples: Images and predictions, PNG.
    """

    fronts: dict[str, str]
    others: dict[str, str]
    samples: bytes


def write(
    workdir: pathlib.Path,
    metric: Metric,
    names: Sequence[str],
    seconds: dict[str, float],
    retrained: Sequence[pathlib.Path],
    samples: Batch,
    teacher_costs: Mapping[str, float] = MappingProxyType({}),
    files: Mapping[str, files_table.File] = MappingProxyType({}),
    retrained_teacher: pathlib.Path | None = None,
    aware: Mapping[str, pathlib.Path] = MappingProxyType({}),
) -> dict[str, Any]:
    """Writes `report/index.html`, its figures and `report/results.json`.

    Args:
      workdir: The run's folder; every stage of it is finished.
      metric: The main figure of the networks.
      names: Names of the classes.
      seconds: How long each stage took.
      retrained: The folder of each retrained subnet.
      samples: The images whose predictions are in the networks' folders.
      teacher_costs: The known costs of the target for the teacher, by name.
      files: The exported files, by subnet, or "teacher".
      retrained_teacher: The folder of the teacher that was trained on, if there is one.
      aware: The folder of each network after quantization-aware training, if there was one, by
        the name of its folder before.

    Returns:
      The content of `results.json`.
    """
    found = outcome.gather(
        workdir, metric, retrained, teacher_costs, files, retrained_teacher, aware
    )
    results = outcome.as_json(found, seconds)
    drawn = _draw(workdir, found, names, samples)
    page = _fill(workdir.name, found, results, drawn)
    for name, text in {**drawn.fronts, **drawn.others}.items():
        artefacts.write(workdir / "report" / f"{name}.svg", text)
    artefacts.write(workdir / "report" / "samples.png", drawn.samples)
    artefacts.write(workdir / "report" / "index.html", page)
    artefacts.write_json(workdir / "report" / "results.json", results)
    return results


def _draw(workdir: pathlib.Path, found: Outcome, classes: Sequence[str], samples: Batch) -> _Drawn:
    subnets = found.subnets
    best = max(subnets, key=lambda name: outcome.score(subnets[name]))
    shown = {"labels": samples.labels}
    shown |= {name: _prediction(found.folders[name]) for name in (TEACHER, best)}
    fronts = {
        "front" if cost == "size_bytes" else f"front_{cost}": figures.front(
            front.pair(found.points, cost),
            {name: _final(one) for name, one in found.teachers.items()},
            [_final(one) for one in subnets.values()],
            found.metric.title,
            cost,
        )
        for cost in ("size_bytes", *found.costs)
    }
    networks = found.networks.items()
    others = {
        "architectures": figures.architectures(
            space.parse_subnet(found.teacher["subnet"]),
            [space.parse_subnet(subnet["subnet"]) for subnet in subnets.values()],
        ),
        "classes": figures.by_class({name: one["by_class"] for name, one in networks}, classes),
        "supernet": figures.supernet(read_metrics(workdir, "supernet")),
    }
    return _Drawn(fronts, others, figures.samples(samples.images, shown, classes))


def _final(network: Network) -> Network:
    """A network whose quantized score is that of its file."""
    return {**network, "quantized": outcome.score(network)}


def _fill(name: str, found: Outcome, results: dict[str, Any], drawn: _Drawn) -> str:
    """The page: the template with all its fields filled."""
    times = results["seconds"].items()
    return _PAGE.substitute(
        drawn.others,
        style=STYLE,
        name=html.escape(name),
        summary=_summary(found),
        verdict=_verdict(results),
        metric=found.metric.title,
        class_metric=found.metric.class_title,
        costs="".join(f"<th>{outcome.title(cost)}</th>" for cost in found.costs),
        rows="\n".join(_row(title, one, found) for title, one in found.networks.items()),
        about_costs=_about_costs(found),
        about_teachers=_about_teachers(found),
        aware="<th>trained quantized</th>" if found.is_aware else "",
        about_aware=_about_aware(found),
        files=files_table.as_html(found.files, found.metric.title),
        fronts="\n".join(drawn.fronts.values()),
        paths="\n".join(_block_row(*block) for block in enumerate(found.blocks, 1)),
        samples=base64.b64encode(drawn.samples).decode(),
        times="".join(f"<tr><td>{stage}</td><td>{duration(s)}</td></tr>" for stage, s in times),
    )


def _prediction(folder: pathlib.Path) -> np.ndarray:
    with reading(folder / "samples.npz") as content, np.load(content) as file:
        return file["quantized"]


def _summary(found: Outcome) -> str:
    data, bits, seed = (found.config[key] for key in ("data", "space", "seed"))
    choices = ", ".join(f"w{w}a{a}" for w, a in zip(bits["w_bits"], bits["a_bits"], strict=True))
    return html.escape(
        f"{data['source']}, {data['height']} x {data['width']}; bitwidths {choices}; "
        f"seed {seed}; {len(found.points)} subnets on the front"
    )


def _about_costs(found: Outcome) -> str:
    if not found.costs:
        return ""
    names = " and ".join(COSTS[name].title for name in found.costs).capitalize()
    source = found.config["hardware"]["table"] or found.config["hardware"]["target"]
    return html.escape(f"{names}: sums over the layers by {source}, for one image.")


def _about_teachers(found: Outcome) -> str:
    if RETRAINED not in found.teachers:
        return ""
    return "The retrained teacher was trained on for as many steps as a subnet: an equal start."


def _about_aware(found: Outcome) -> str:
    if not found.is_aware:
        return ""
    return (
        "Quantized: without training under the bitwidths. Trained quantized: after "
        "quantization-aware training; the files and the comparison are those of these networks."
    )


def _verdict(results: dict[str, Any]) -> str:
    count, of = len(results["dominating"]), len(results["subnets"])
    which = "both quantized teachers" if "retrained_teacher" in results else "the quantized teacher"
    return f"<p>{count} of {of} retrained subnets dominate {which}.</p>"


def _row(name: str, network: Network, found: Outcome) -> str:
    cells = [
        f"<td>{name}</td>",
        f"<td>{network['nsr']:.4f}</td>" if "nsr" in network else "<td></td>",
    ]
    for size in ("size_bytes", "encoder_size_bytes"):
        share = 100 * network[size] / found.teacher[size]
        cells += [f"<td>{network[size] / 1e3:.1f}</td>", f"<td>{share:.1f} %</td>"]
    cells += [f"<td>{outcome.cost(network, cost)}</td>" for cost in found.costs]
    scores = ("fp32", "quantized", *([outcome.AWARE] if found.is_aware else []))
    cells += [f"<td>{network[key]:.2f}</td>" for key in scores]
    cells.append(f'<td class="text">{network["subnet"]}</td>')
    better = ' class="better"' if name in found.dominating else ""
    return f"<tr{better}>{''.join(cells)}</tr>"


def _block_row(number: int, block: dict[str, Any]) -> str:
    random = [path["nsr"] for path in block["random"]]
    values = [block["training"], block["largest"]["nsr"], block["smallest"]["nsr"]]
    values += [np.mean(random), np.std(random)]
    cells = ["" if value is None else f"{value:.4f}" for value in values]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in (number, *cells)) + "</tr>"
