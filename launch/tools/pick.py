"""The best subnets of a finished run within budgets, from its table, in a moment.

    python launch/tools/pick.py --workdir runs/streets --budget_bytes=700000
    python launch/tools/pick.py --workdir runs/streets --table pixel.csv --budget_ms=4.5

Reads `lut/` and, for a target or a table of measured latencies, `search/deployed.json`.
Trains nothing: --config.search.budget_... of launch/main.py trains the best one.
"""

import argparse
import math
import pathlib
import sys

from qnas_jax import space
from qnas_jax.bwnas.lut import table
from qnas_jax.errors import InputError
from qnas_jax.hardware import measured
from qnas_jax.hardware import target as targets
from qnas_jax.run import artefacts, paths
from qnas_jax.search import front

BUDGETS = {"size_bytes": "budget_bytes", "latency_ms": "budget_ms", "energy_mj": "budget_mj"}


def main() -> None:
    """Prints the subnets; what the user can mend is told in one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--target", help="a device; by default the run's")
    parser.add_argument("--table", help="CSV of measured latencies; by default the run's")
    parser.add_argument("--budget_bytes", type=int, default=0, help="of the whole network")
    parser.add_argument("--budget_ms", type=float, default=0.0)
    parser.add_argument("--budget_mj", type=float, default=0.0)
    parser.add_argument("--count", type=int, default=5, help="subnets to print")
    parser.add_argument("--epsilon", type=float, default=0.0, help="as config.search.epsilon")
    try:
        _pick(parser.parse_args())
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _pick(arguments: argparse.Namespace) -> None:
    for name in (*BUDGETS.values(), "epsilon"):
        if not 0 <= getattr(arguments, name) < math.inf:
            raise InputError(f"--{name}={getattr(arguments, name)}: must be a number from 0")
    if arguments.count < 1:
        raise InputError(f"--count={arguments.count}: must be at least 1")
    workdir, budgets = paths.folder("--workdir", arguments.workdir), {}
    for cost, name in BUDGETS.items():
        if getattr(arguments, name):
            budgets[cost] = getattr(arguments, name)
    rows = table.load(workdir / "lut" / "lut.npz")
    made = artefacts.read_json(workdir / "lut" / "lut.json", "fixed_size_bytes")
    fixed_bytes = made["fixed_size_bytes"]
    hardware = artefacts.read_json(workdir / "config.json").get("hardware", {})
    name = hardware.get("target", "none") if arguments.target is None else arguments.target
    path = hardware.get("table", "") if arguments.table is None else arguments.table
    fixed = {}
    if path or name != targets.NONE.name:
        rows, fixed = _on_target(rows, name, path, workdir / "search" / "deployed.json")
    unknown = [cost for cost in budgets if cost not in rows.costs]
    if unknown:
        raise InputError(f"--{BUDGETS[unknown[0]]}: set --target or --table, which tell it")
    costs = tuple(budgets) or ("size_bytes",)
    stem, head = fixed_bytes["stem"], fixed_bytes["head"]
    points = front.search(rows, stem, head, costs, fixed, arguments.epsilon)
    _print(front.within(points, budgets)[: arguments.count])


def _on_target(rows: table.Table, name: str, path: str, deployed_file: pathlib.Path):
    """The table with the target's costs, and those of the fixed parts."""
    deployed, device = artefacts.read_json(deployed_file), targets.named(name)
    where = tuple(targets.Place(*place) for place in deployed["places"])
    if path:
        device = measured.with_table(device, paths.named("--table", path), where)
    convs = {
        part: [space.Conv(*conv) for conv in convs]
        for part, convs in deployed["fixed_convs"].items()
    }
    costs = {cost: functions.of_layer for cost, functions in device.costs.items()}
    return table.with_costs(rows, where, costs), targets.fixed_costs(device, convs)


def _print(points: list[front.Point]) -> None:
    extra = [name for name in front.EXTRA if getattr(points[0], name) is not None]
    print("     NSR   size kB" + "".join(f"  {name:>10}" for name in extra) + "  subnet")
    for point in points:
        costs = "".join(f"  {getattr(point, name):10.4g}" for name in extra)
        print(f"{point.nsr:8.4f} {point.size_bytes / 1e3:9.1f}{costs}  {point.subnet}")


if __name__ == "__main__":
    main()
