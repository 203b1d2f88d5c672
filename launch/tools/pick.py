"""The best subnets of a finished run within budgets, in a moment.

    python launch/tools/pick.py --workdir runs/streets --budgets="(('size_bytes', 700_000),)"
    python launch/tools/pick.py --workdir runs/streets --table cpu.csv \\
        --budgets="(('latency_ms', 4.5), ('size_bytes', 700_000))"

Reads `config.json`, `lut/` and `search/deployed.json` of the run. Trains nothing; to train the best
subnet, give the same budgets to launch/main.py as --config.search.budgets.
"""

from collections.abc import Sequence

from absl import flags
from ml_collections.config_flags.tuple_parser import TupleParser

from qnas_jax.bwnas import config, search_front
from qnas_jax.bwnas.lut import table
from qnas_jax.hardware import deployment
from qnas_jax.hardware import target as targets
from qnas_jax.run import cli, paths
from qnas_jax.run.stage import read_json
from qnas_jax.search import front
from qnas_jax.search.front import Point
from qnas_jax.space import COSTS

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_BUDGETS = flags.DEFINE(TupleParser(), "budgets", (), "As --config.search.budgets.")
_EPSILON = flags.DEFINE_float("epsilon", 0.0, "As --config.search.epsilon.")
_TARGET = flags.DEFINE_string("target", None, "As --config.hardware.target; default: the run's.")
_TABLE = flags.DEFINE_string("table", None, "As --config.hardware.table; default: the run's.")
_COUNT = flags.DEFINE_integer("count", 5, "How many subnets to print.", lower_bound=1)


def main() -> None:
    """Prints the subnets, the lowest NSR first."""
    workdir = paths.folder("--workdir", _WORKDIR.value)
    how = config.Search(tuple(COSTS), _EPSILON.value, _BUDGETS.value)
    how.check()
    budgets = dict(how.budgets)
    how.costs = tuple(budgets) or ("size_bytes",)
    rows = table.load(workdir / "lut" / "lut.npz")
    run = read_json(workdir / "config.json", "hardware")["hardware"]
    name = run["target"] if _TARGET.value is None else _TARGET.value
    measured = run["table"] if _TABLE.value is None else _TABLE.value
    measured = measured and paths.expanded("--table", measured)
    deployed = deployment.read(workdir / "search" / "deployed.json", name, measured)
    targets.check_knows(deployed.target, how.costs)
    rows = search_front.with_costs(rows, deployed)
    points = search_front.search(rows, deployed.fixed(), how.costs, how.epsilon)
    _print(front.within(points, budgets)[: _COUNT.value])


def _print(points: Sequence[Point]) -> None:
    names = [name for name in COSTS if name in points[0].costs]
    titles = (f"{COSTS[name].title} {COSTS[name].shown_unit}" for name in names)
    print("".join(f"{title:>12}" for title in ("NSR", *titles)) + "  subnet")
    for point in points:
        cells = [f"{point.nsr:.4f}"]
        cells += [f"{point.costs[name] / COSTS[name].per_shown_unit:.5g}" for name in names]
        print("".join(f"{cell:>12}" for cell in cells) + f"  {point.subnet}")


if __name__ == "__main__":
    cli.start(main)
