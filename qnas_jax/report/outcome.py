"""The figures of a run's networks: as data, as JSON and as lines of text."""

import pathlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from qnas_jax.metrics import Metric
from qnas_jax.report.exports import File
from qnas_jax.run.stage import read_json
from qnas_jax.search import front
from qnas_jax.space import COSTS

Network = dict[str, Any]  # a network's figures by name

TEACHER = "teacher"  # its name in the report; subnets are "subnet 1", "subnet 2", ... by size
RETRAINED = "retrained teacher"  # which was trained on for as many steps as a subnet
AWARE = "qat"  # the score after quantization-aware training, if there was one
_FIGURES = ("fp32", "quantized", AWARE, *front.SIZES)


class Outcome(NamedTuple):
    """What the stages of a run left in its folder.

    Attributes:
      config: The run's settings.
      metric: The main figure of the networks; `fp32` and `quantized` are its values.
      blocks: NSR of single paths of the supernet's blocks, as in `supernet/nsr.json`.
      points: The front.
      networks: The figures of the teacher, of the retrained teacher if there is one, and of the
        retrained subnets, by their names in the report. A cost of the teacher is missing where
        the target does not know it.
      folders: Where each was trained and measured at last, by the same names.
      files: The exported files, by the same names; none of the retrained teacher.
      costs: The costs that the run's target knows, by name; without the size.
    """

    config: dict[str, Any]
    metric: Metric
    blocks: list[dict[str, Any]]
    points: list[front.Point]
    networks: dict[str, Network]
    folders: dict[str, pathlib.Path]
    files: dict[str, File]
    costs: list[str]

    @property
    def teacher(self) -> Network:
        """The teacher's figures."""
        return self.networks[TEACHER]

    @property
    def teachers(self) -> dict[str, Network]:
        """The figures of the teacher, and of the retrained one, by their names in the report."""
        return {name: self.networks[name] for name in (TEACHER, RETRAINED) if name in self.networks}

    @property
    def is_aware(self) -> bool:
        """Whether there was a quantization-aware training."""
        return AWARE in self.teacher

    @property
    def subnets(self) -> dict[str, Network]:
        """The figures of the retrained subnets, by their names in the report."""
        teachers = self.teachers
        return {name: network for name, network in self.networks.items() if name not in teachers}

    @property
    def dominating(self) -> list[str]:
        """The names of the subnets that dominate every quantized teacher."""
        teachers = self.teachers.values()
        return [
            name for name, one in self.subnets.items() if all(dominates(one, t) for t in teachers)
        ]


def gather(
    workdir: pathlib.Path,
    metric: Metric,
    retrained: Sequence[pathlib.Path],
    teacher_costs: Mapping[str, float],
    files: Mapping[str, File],
    retrained_teacher: pathlib.Path | None = None,
    aware: Mapping[str, pathlib.Path] = MappingProxyType({}),
) -> Outcome:
    """Reads what the stages of a run left in its folder; see `page.write`.

    Raises:
      InputError: A file is missing or damaged.
    """
    points = front.read(workdir / "search" / "front.csv")
    costs = [name for name in COSTS if name in points[0].costs and name not in front.SIZES]
    by_subnet = {point.subnet: point for point in points}
    folders = {TEACHER: workdir / "teacher"}
    if retrained_teacher:
        folders[RETRAINED] = retrained_teacher
    networks = {
        name: {**_metrics(folder, metric), **teacher_costs} for name, folder in folders.items()
    }
    found = ((_metrics(folder, metric), folder) for folder in retrained)
    by_size = sorted(found, key=lambda one: one[0]["size_bytes"])
    for number, (figures, folder) in enumerate(by_size, 1):
        point, name = by_subnet[figures["subnet"]], f"subnet {number}"
        known = {cost: point.costs[cost] for cost in costs}
        networks[name], folders[name] = {**figures, "nsr": point.nsr, **known}, folder
    for name, folder in folders.items():
        if folder.name in aware:
            final = _metrics(aware[folder.name], metric)
            networks[name] |= {AWARE: final["quantized"], "by_class": final["by_class"]}
            folders[name] = aware[folder.name]
    return Outcome(
        config=read_json(workdir / "config.json"),
        metric=metric,
        blocks=read_json(workdir / "supernet" / "nsr.json", "blocks")["blocks"],
        points=points,
        networks=networks,
        folders=folders,
        files={
            name: files[TEACHER if name == TEACHER else network["subnet"]]
            for name, network in networks.items()
            if files and name != RETRAINED
        },
        costs=costs,
    )


def _metrics(folder: pathlib.Path, metric: Metric) -> Network:
    """The figures of a network; those of the main figure have the names of the report."""
    names = {"fp32": f"{metric.name}_fp32", "quantized": f"{metric.name}_quantized"}
    names["by_class"] = f"{metric.by_class}_quantized"
    held = read_json(folder / "metrics.json", "subnet", *names.values(), *front.SIZES)
    return held | {name: held[key] for name, key in names.items()}


def as_json(found: Outcome, seconds: Mapping[str, float]) -> dict[str, Any]:
    """The content of `results.json`.

    Args:
      found: What the stages left.
      seconds: How long each stage took.
    """
    figures = (*_FIGURES, *found.costs)
    shown = {
        name: {
            figure: network[figure]
            for figure in (figures if name in found.teachers else ("subnet", "nsr", *figures))
            if figure in network
        }
        for name, network in found.networks.items()
    }
    for name, file in found.files.items():
        shown[name]["file"] = {**file._asdict(), "ratio": round(file.ratio, 4)}
    retrained = {"retrained_teacher": shown[RETRAINED]} if RETRAINED in shown else {}
    return {
        "metric": found.metric.name,
        "teacher": shown[TEACHER],
        **retrained,
        "subnets": [shown[name] for name in found.subnets],
        "dominating": [found.networks[name]["subnet"] for name in found.dominating],
        "seconds": seconds,
        "seed": found.config["seed"],
    }


def as_text(results: dict[str, Any]) -> str:
    """The networks of a run, a line each, for a terminal."""
    aware = f"  {'trained':>9}" if AWARE in results["teacher"] else ""
    names = {"teacher": TEACHER, "retrained_teacher": RETRAINED}
    teachers = [{"subnet": name, **results[key]} for key, name in names.items() if key in results]
    networks = [*teachers, *results["subnets"]]
    costs = [name for name in COSTS if name in networks[-1] and name not in front.SIZES]
    titles = "".join(f"  {title(name, ' '):>11}" for name in costs)
    lines = [
        f"    size kB  encoder kB{titles}   {results['metric']} float  quantized{aware}  network"
    ]
    for network in networks:
        better = "*" if network["subnet"] in results["dominating"] else " "
        sizes = f"{network['size_bytes'] / 1e3:9.1f}  {network['encoder_size_bytes'] / 1e3:10.1f}"
        sizes += "".join(f"  {cost(network, name):>11}" for name in costs)
        scores = f"{network['fp32']:{len(results['metric']) + 7}.2f}  {network['quantized']:9.2f}"
        scores += f"  {network[AWARE]:9.2f}" if aware else ""
        lines.append(f"{better} {sizes}  {scores}  {network['subnet']}")
    which = "teacher" if len(teachers) == 1 else "teachers"
    return "\n".join([*lines, f"* dominates the quantized {which}"])


def cost(network: Network, name: str) -> str:
    """A network's cost as text; a dash where the target does not know it."""
    return f"{network[name] / COSTS[name].per_shown_unit:.4g}" if name in network else "-"


def title(name: str, between: str = ", ") -> str:
    """The head of a cost's column: its title and the unit in which it is shown."""
    return f"{COSTS[name].title}{between}{COSTS[name].shown_unit}"


def dominates(subnet: Network, teacher: Network) -> bool:
    """Whether a subnet is no larger and no less accurate, quantized, and better in one of them.

    Accuracies are those after quantization-aware training, if there was one.
    """
    smaller = teacher["size_bytes"] - subnet["size_bytes"]
    better = score(subnet) - score(teacher)
    return min(smaller, better) >= 0 and max(smaller, better) > 0


def score(network: Network) -> float:
    """The score of a network's file: after quantization-aware training, if there was one."""
    return network.get(AWARE, network["quantized"])
