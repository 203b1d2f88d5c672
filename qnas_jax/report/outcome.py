"""What came of a run: the networks' figures, as data, as JSON and as lines of text."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qnas_jax.report.exports import File
from qnas_jax.run import artefacts
from qnas_jax.search import front

Network = dict[str, Any]  # a network's figures by name

COSTS = {"latency_ms": "latency, ms", "energy_mj": "energy, mJ"}  # where a target tells them
_FIGURES = ("miou_fp32", "miou_quantized", "size_bytes", "encoder_size_bytes")


class Outcome(NamedTuple):
    """What the stages of a run left behind.

    Attributes:
      config: The run's settings.
      blocks: NSR of single paths of the supernet's blocks, as `supernet/nsr.json` has them.
      points: The front.
      teacher: The teacher's figures; a cost only where the target tells it.
      subnets: Those of the retrained subnets, by size.
      folders: Where these were retrained, in the same order.
      costs: Which of `COSTS` the target tells.
    """

    config: dict[str, Any]
    blocks: list[dict[str, Any]]
    points: list[front.Point]
    teacher: Network
    subnets: list[Network]
    folders: list[pathlib.Path]
    costs: list[str]

    @property
    def networks(self) -> dict[str, Network]:
        """The teacher and the subnets, by the names that they have in the report."""
        numbered = {f"subnet {i}": subnet for i, subnet in enumerate(self.subnets, 1)}
        return {"teacher": self.teacher, **numbered}


def gather(
    workdir: pathlib.Path, retrained: Sequence[pathlib.Path], teacher_costs: Mapping[str, float]
) -> Outcome:
    """Reads what the stages of a run left behind; see `page.write`.

    Raises:
      InputError: A file is missing or damaged.
    """
    points = front.read(workdir / "search" / "front.csv")
    costs = [name for name in COSTS if getattr(points[0], name) is not None]
    by_subnet = {point.subnet: point for point in points}
    measured = {folder: _metrics(folder) for folder in retrained}
    folders = sorted(measured, key=lambda folder: measured[folder]["size_bytes"])
    subnets = []
    for figures in (measured[folder] for folder in folders):
        point = by_subnet[figures["subnet"]]
        subnets.append({**figures, **{name: getattr(point, name) for name in ("nsr", *costs)}})
    return Outcome(
        config=artefacts.read_json(workdir / "config.json"),
        blocks=artefacts.read_json(workdir / "supernet" / "nsr.json", "blocks")["blocks"],
        points=points,
        teacher={**_metrics(workdir / "teacher"), **teacher_costs},
        subnets=subnets,
        folders=folders,
        costs=costs,
    )


def _metrics(folder: pathlib.Path) -> Network:
    return artefacts.read_json(folder / "metrics.json", "subnet", *_FIGURES)


def as_json(found: Outcome, seconds: Mapping[str, float], files: Sequence[File]) -> dict[str, Any]:
    """What `results.json` holds.

    Args:
      found: What came of the run.
      seconds: How long each stage took.
      files: Of the exported networks, the teacher first; or none.
    """
    teacher, names = found.teacher, (*_FIGURES, *found.costs)
    results = {
        "teacher": {name: teacher[name] for name in names if name in teacher},
        "subnets": [{name: s[name] for name in ("subnet", "nsr", *names)} for s in found.subnets],
        "dominating": [s["subnet"] for s in found.subnets if dominates(s, teacher)],
        "seconds": seconds,
        "seed": found.config["seed"],
    }
    if files:
        for network, file in zip((results["teacher"], *results["subnets"]), files, strict=True):
            network["file"] = {**file._asdict(), "ratio": round(file.ratio, 4)}
    return results


def as_text(results: dict[str, Any]) -> str:
    """The networks of a run, a line each, for a terminal."""
    networks = [{"subnet": "teacher", **results["teacher"]}, *results["subnets"]]
    costs = [name for name in COSTS if name in networks[-1]]
    titles = "".join(f"  {COSTS[name].replace(',', ''):>11}" for name in costs)
    lines = [f"    size kB  encoder kB{titles}   mIoU float  quantized  network"]
    for network in networks:
        better = "*" if network["subnet"] in results["dominating"] else " "
        sizes = f"{network['size_bytes'] / 1e3:9.1f}  {network['encoder_size_bytes'] / 1e3:10.1f}"
        sizes += "".join(f"  {cost(network, name):>11}" for name in costs)
        mious = f"{network['miou_fp32']:11.2f}  {network['miou_quantized']:9.2f}"
        lines.append(f"{better} {sizes}  {mious}  {network['subnet']}")
    return "\n".join([*lines, "* dominates the quantized teacher"])


def cost(network: Network, name: str) -> str:
    """A network's cost as it is shown; a dash where the target does not tell it."""
    return f"{network[name]:.4g}" if name in network else "-"


def dominates(subnet: Network, teacher: Network) -> bool:
    """Whether a subnet is no larger and no less accurate, quantized, and better in one."""
    smaller = teacher["size_bytes"] - subnet["size_bytes"]
    better = subnet["miou_quantized"] - teacher["miou_quantized"]
    return min(smaller, better) >= 0 and max(smaller, better) > 0
