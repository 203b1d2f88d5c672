"""The report of a run: one page for people, the same figures as JSON for programs."""

import base64
import html
import pathlib
import string
import zipfile
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from qnas_jax import artefact, space
from qnas_jax.data.batching import Batch
from qnas_jax.report import figures
from qnas_jax.report import files as files_table
from qnas_jax.runlog import duration, read_metrics
from qnas_jax.search import front

_FIGURES = ("miou_fp32", "miou_quantized", "size_bytes", "encoder_size_bytes")
_COSTS = {"latency_ms": "latency, ms", "energy_mj": "energy, mJ"}  # where a target tells them

_PAGE = string.Template("""<!doctype html>
<html lang="en"><meta charset="utf-8">
<title>qnas_jax: $name</title>
<style>
 body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto;
        padding: 0 1em; }
 h1 { font-size: 1.5em; margin-bottom: 0; } h2 { font-size: 1.15em; margin-top: 2em; }
 table { border-collapse: collapse; font-size: 14px; }
 th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #e3e3e3; }
 th:first-child, td:first-child, td.text, th.text { text-align: left; }
 td.text { font: 11px/1.3 ui-monospace, monospace; overflow-wrap: anywhere; }
 tr.better { background: #e7f3ea; } .note { color: #666; font-size: 13px; }
 svg, img { max-width: 100%; height: auto; }
</style>
<h1>$name</h1>
<p class="note">$summary</p>
$verdict
<table>
<tr><th>network</th><th>NSR</th><th>size, kB</th><th>of the teacher</th><th>encoder, kB</th>
<th>of the teacher</th>$costs<th>mIoU float</th><th>mIoU quantized</th>
<th class="text">subnet</th></tr>
$rows
</table>
<p class="note">Sizes are those of the quantized networks: weights at their bitwidth, a scale and a
bias for each output channel. The encoder is the network without its head; only its six blocks are
searched. The NSR is summed over the blocks. $about_costs Green rows dominate the quantized
teacher: no larger, no less accurate, and better in one of the two.</p>
$files
<h2>Front</h2>
$fronts
<h2>Architectures</h2>
$architectures
<p class="note">A bar is a layer: tall with its expansion, dark with its kernel (the number in it);
below it the bitwidths of weights/activations (one number: both).</p>
<h2>Supernet</h2>
$supernet
<table>
<tr><th>block</th><th>training</th><th>largest</th><th>smallest</th><th>random, mean</th>
<th>standard deviation</th></tr>
$paths
</table>
<p class="note">The NSR of a block's output against the teacher's, unquantized; 1 is that of
predicting each channel's mean. The curves are of the paths and pictures of single training steps,
the first column is their end. The others are of single paths on validation pictures: that of the
largest kernels and expansions, that of the smallest, and up to ten drawn at random.</p>
<h2>IoU by class, quantized (%)</h2>
$classes
<h2>Validation pictures, quantized networks</h2>
<img alt="pictures, labels and predictions" src="data:image/png;base64,$samples">
<h2>Time</h2>
<table><tr><th>stage</th><th>time</th></tr>$times</table>
</html>
""")


def write(
    workdir: pathlib.Path,
    seconds: dict[str, float],
    retrained: Sequence[pathlib.Path],
    samples: Batch,
    teacher_costs: Mapping[str, float] = MappingProxyType({}),
    files: Mapping[str, files_table.File] = MappingProxyType({}),
) -> dict[str, Any]:
    """Writes `report/index.html`, its figures and `report/results.json`.

    Args:
      workdir: The run's folder, every stage of it finished.
      seconds: How long each stage took.
      retrained: The folder of each retrained subnet.
      samples: The pictures whose predictions the networks' folders hold.
      teacher_costs: What the target takes for the teacher, where it is known.
      files: Of exported networks, by their subnet, or "teacher".

    Returns:
      What `results.json` holds.
    """
    config = artefact.read_json(workdir / "config.json")
    teacher = {**_metrics(workdir / "teacher"), **teacher_costs}
    single_paths = artefact.read_json(workdir / "supernet" / "nsr.json")
    points = front.read(workdir / "search" / "front.csv")
    by_subnet = {point.subnet: point for point in points}
    costs = [name for name in _COSTS if getattr(points[0], name) is not None]
    folders = {_metrics(folder)["subnet"]: folder for folder in retrained}
    subnets = [
        {**_metrics(folder), **{k: getattr(by_subnet[subnet], k) for k in ("nsr", *costs)}}
        for subnet, folder in folders.items()
    ]
    subnets.sort(key=lambda subnet: subnet["size_bytes"])
    results = _results(teacher, subnets, costs, seconds, config["seed"])
    ordered = [files[name] for name in ("teacher", *(s["subnet"] for s in subnets)) if files]
    for network, file in zip((results["teacher"], *results["subnets"]), ordered, strict=False):
        network["file"] = {**file._asdict(), "ratio": round(file.ratio, 4)}
    best = max(subnets, key=lambda subnet: subnet["miou_quantized"])
    maps = [
        ("labels", samples.labels),
        ("teacher", _prediction(workdir / "teacher")),
        (f"subnet {subnets.index(best) + 1}", _prediction(folders[best["subnet"]])),
    ]
    names = ["teacher", *(f"subnet {i}" for i in range(1, len(subnets) + 1))]
    fronts = {
        "front" if name == "size_bytes" else f"front_{name}": figures.front(
            front.pair(points, name), teacher, subnets, name
        )
        for name in ("size_bytes", *costs)
    }
    drawn = {
        "architectures": figures.architectures(
            space.parse_subnet(teacher["subnet"]),
            [space.parse_subnet(s["subnet"]) for s in subnets],
        ),
        "classes": figures.class_iou(
            names, np.array([s["class_iou_quantized"] for s in (teacher, *subnets)], float)
        ),
        "supernet": figures.supernet(read_metrics(workdir, "supernet")),
    }
    picture = figures.samples(samples.images, maps)
    page = _PAGE.substitute(
        drawn,
        files=files_table.as_html(names, ordered),
        fronts="\n".join(fronts.values()),
        costs="".join(f"<th>{_COSTS[name]}</th>" for name in costs),
        about_costs=_about_costs(config, costs),
        name=html.escape(workdir.name),
        summary=_summary(config, points),
        verdict=_verdict(results),
        rows="\n".join(
            _row(name, s, teacher, costs)
            for name, s in zip(names, (teacher, *subnets), strict=True)
        ),
        paths="\n".join(
            _block_row(number, block) for number, block in enumerate(single_paths["blocks"], 1)
        ),
        samples=base64.b64encode(picture).decode(),
        times="".join(f"<tr><td>{n}</td><td>{duration(s)}</td></tr>" for n, s in seconds.items()),
    )
    for name, text in {**fronts, **drawn}.items():
        _write(workdir / "report" / f"{name}.svg", text.encode())
    _write(workdir / "report" / "samples.png", picture)
    _write(workdir / "report" / "index.html", page.encode())
    artefact.write_json(workdir / "report" / "results.json", results)
    return results


def _results(teacher, subnets, costs, seconds, seed) -> dict[str, Any]:
    """What `results.json` holds."""
    known = [name for name in (*_FIGURES, *costs) if name in teacher]
    figures_of = ("subnet", "nsr", *_FIGURES, *costs)
    return {
        "teacher": {name: teacher[name] for name in known},
        "subnets": [{name: s[name] for name in figures_of} for s in subnets],
        "dominating": [s["subnet"] for s in subnets if dominates(s, teacher)],
        "seconds": seconds,
        "seed": seed,
    }


def as_text(results: dict[str, Any]) -> str:
    """The networks of a run, a line each, for a terminal."""
    networks = [{"subnet": "teacher", **results["teacher"]}, *results["subnets"]]
    costs = [name for name in _COSTS if name in networks[-1]]
    titles = "".join(f"  {_COSTS[name].replace(',', ''):>11}" for name in costs)
    lines = [f"    size kB  encoder kB{titles}   mIoU float  quantized  network"]
    for network in networks:
        better = "*" if network["subnet"] in results["dominating"] else " "
        sizes = f"{network['size_bytes'] / 1e3:9.1f}  {network['encoder_size_bytes'] / 1e3:10.1f}"
        sizes += "".join(f"  {_cost(network, name):>11}" for name in costs)
        mious = f"{network['miou_fp32']:11.2f}  {network['miou_quantized']:9.2f}"
        lines.append(f"{better} {sizes}  {mious}  {network['subnet']}")
    return "\n".join([*lines, "* dominates the quantized teacher"])


def _cost(network: dict[str, Any], name: str) -> str:
    return f"{network[name]:.4g}" if name in network else "-"


def dominates(subnet: dict[str, Any], teacher: dict[str, Any]) -> bool:
    """Whether a subnet is no larger and no less accurate, quantized, and better in one."""
    smaller = teacher["size_bytes"] - subnet["size_bytes"]
    better = subnet["miou_quantized"] - teacher["miou_quantized"]
    return min(smaller, better) >= 0 and max(smaller, better) > 0


def _metrics(folder: pathlib.Path) -> dict[str, Any]:
    return artefact.read_json(folder / "metrics.json")


def _prediction(folder: pathlib.Path) -> np.ndarray:
    path = folder / "samples.npz"
    try:
        with path.open("rb") as content, np.load(content) as file:
            return file["quantized"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise artefact.unreadable(path, error) from None


def _write(path: pathlib.Path, content: bytes) -> None:
    with artefact.writing(path) as file:
        file.write(content)


def _summary(config: dict[str, Any], points: Sequence[front.Point]) -> str:
    data, bits = config["data"], config["space"]
    choices = ", ".join(f"w{w}a{a}" for w, a in zip(bits["w_bits"], bits["a_bits"], strict=True))
    return html.escape(
        f"{data['source']}, {data['height']} x {data['width']}; bitwidths {choices}; "
        f"seed {config['seed']}; {len(points)} subnets on the front"
    )


def _about_costs(config: dict[str, Any], costs: Sequence[str]) -> str:
    if not costs:
        return ""
    names = " and ".join(_COSTS[name].partition(",")[0] for name in costs).capitalize()
    source = config["hardware"]["table"] or config["hardware"]["target"]
    return html.escape(f"{names}: sums over the layers by {source}, for one picture.")


def _verdict(results: dict[str, Any]) -> str:
    count, of = len(results["dominating"]), len(results["subnets"])
    return f"<p>{count} of {of} retrained subnets dominate the quantized teacher.</p>"


def _row(name: str, network: dict[str, Any], teacher: dict[str, Any], costs: list[str]) -> str:
    cells = [
        f"<td>{name}</td>",
        f"<td>{network['nsr']:.4f}</td>" if "nsr" in network else "<td></td>",
    ]
    for size in ("size_bytes", "encoder_size_bytes"):
        share = 100 * network[size] / teacher[size]
        cells += [f"<td>{network[size] / 1e3:.1f}</td>", f"<td>{share:.1f} %</td>"]
    cells += [f"<td>{_cost(network, cost)}</td>" for cost in costs]
    cells += [f"<td>{network[key]:.2f}</td>" for key in ("miou_fp32", "miou_quantized")]
    cells.append(f'<td class="text">{network["subnet"]}</td>')
    better = ' class="better"' if dominates(network, teacher) else ""
    return f"<tr{better}>{''.join(cells)}</tr>"


def _block_row(number: int, block: dict[str, Any]) -> str:
    random = [path["nsr"] for path in block["random"]]
    values = [block["training"], block["largest"]["nsr"], block["smallest"]["nsr"]]
    values += [np.mean(random), np.std(random)]
    cells = ["" if value is None else f"{value:.4f}" for value in values]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in (number, *cells)) + "</tr>"
