"""Draws the front of every quantization policy, from one supernet, on one plot.

    qnas policies --config configs/streets.py --workdir runs/streets

Uses the teacher and the supernet of a run, and trains them if they are missing. Writes `policies/`
in its folder: a LUT and a front for each policy, `fronts.svg` and `fronts.csv`.
"""

import copy
import pathlib

from qnas_jax.bwnas import adapters, inspection, populate_table, search_front, train_supernet
from qnas_jax.bwnas.config import Config, Search
from qnas_jax.errors import InputError
from qnas_jax.hardware.deployment import Deployment
from qnas_jax.hardware.target import check_w_bits
from qnas_jax.report import figures
from qnas_jax.run import artefacts, cli, disk, platform
from qnas_jax.search import front
from qnas_jax.stages import fit
from qnas_jax.stages import train as train_stage
from qnas_jax.stages.experiment import Problem, for_target, prepare

cli.define_run_flags()

APART = tuple((w, a) for w in (4, 6, 8) for a in (4, 6, 8))
# (w_bits, a_bits, bits_per)
POLICIES = {
    "INT8": ((8,), (8,), "block"),
    "INT6": ((6,), (6,), "block"),
    "INT4": ((4,), (4,), "block"),
    "4, 6, 8 per block": ((4, 6, 8), (4, 6, 8), "block"),
    "4, 6, 8 per block, apart": (tuple(w for w, _ in APART), tuple(a for _, a in APART), "block"),
    "4, 6, 8 per layer": ((4, 6, 8), (4, 6, 8), "layer"),
}


def main() -> None:
    """Fills and searches a LUT for each policy; draws all fronts."""
    config, workdir = cli.run_flags(Config)
    platform.use_compilation_cache()
    with disk.only_one(workdir):
        _compare(config, workdir)


def _compare(config: Config, workdir: pathlib.Path) -> None:
    config, problem, deployed = prepare(config)
    inspection.inspect(config, problem, deployed)
    configs = _configs(config, problem, deployed)
    how, place = fit.training(config), workdir / "policies"
    teacher, variables = train_stage.train_teacher(
        workdir, problem, how, config.network, config.teacher
    )
    variables = adapters.of_run(workdir / "supernet", problem, how, variables)
    distilled, params = train_supernet.train_supernet(
        workdir, problem, how, config.space, config.supernet, teacher.stage, variables
    )
    fronts, seconds = {}, {}
    for name, one in configs.items():
        folder = place / name.replace(", ", "-").replace(" ", "_")
        populated, rows = populate_table.populate_table(
            folder, problem, deployed, one.space, one.lut, one.kernels, how.train.crop,
            distilled, variables, params,
        )  # fmt: skip
        _, fronts[name] = search_front.search_front(folder, one.search, deployed, populated, rows)
        seconds[name] = populated.seconds
    _report(place, fronts, seconds)


def _configs(config: Config, problem: Problem, deployed: Deployment) -> dict[str, Config]:
    """A config for each policy that the target runs; prints the others."""
    found = {}
    for name, (w_bits, a_bits, bits_per) in POLICIES.items():
        changed = copy.deepcopy(config)
        changed.space.w_bits, changed.space.a_bits = w_bits, a_bits
        changed.space.bits_per = bits_per
        changed.search = Search(costs=changed.search.costs, epsilon=changed.search.epsilon)
        try:
            check_w_bits(deployed.target, name, w_bits)
            changed.space = for_target(changed.space, deployed.target)
            inspection.check_target(changed, problem.space, deployed)
            found[name] = changed
        except InputError as error:
            print(f"{name}: left out; {error}")
    if not found:
        raise InputError(f"target {deployed.target.name!r} runs none of the policies")
    return found


def _report(
    folder: pathlib.Path, fronts: dict[str, list[front.Point]], seconds: dict[str, float]
) -> None:
    """Prints each policy's smallest subnet no worse than the first's middle one; draws all."""
    first = next(iter(fronts))
    picked = front.spread(fronts[first], 3)  # best, middle, smallest
    limit = picked[len(picked) // 2].nsr
    lines = ["policy,table_s,front,best_nsr,size_bytes_at_limit,encoder_size_bytes_at_limit"]
    print(f"the smallest subnets of NSR at most {limit:.4f}, that of {first} at its middle size:")
    print("policy                     table s  front   best NSR  size kB  encoder kB")
    for name, points in fronts.items():
        within = [point for point in points if point.nsr <= limit]
        least = min(within, key=lambda point: point.costs["size_bytes"]) if within else None
        sizes = [least.costs[name] for name in front.SIZES] if least else []
        cells = ",".join(map(str, sizes)) or ","
        lines.append(f'"{name}",{seconds[name]:.1f},{len(points)},{points[0].nsr:.6f},{cells}')
        shown = f"{sizes[0] / 1e3:8.1f} {sizes[1] / 1e3:11.1f}" if least else "    none"
        print(f"{name:26s} {seconds[name]:7.1f} {len(points):6d} {points[0].nsr:10.4f} {shown}")
    artefacts.write(folder / "fronts.csv", "\n".join(lines) + "\n")
    artefacts.write(folder / "fronts.svg", figures.fronts(fronts))
    print(f"fronts: {folder / 'fronts.svg'}")
