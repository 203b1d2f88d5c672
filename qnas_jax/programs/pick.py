"""Lists the best subnets of a finished run within budgets, in a moment.

    qnas pick --workdir runs/streets --budgets="(('size_bytes', 700_000),)"
    qnas pick --workdir runs/streets --table cpu.csv \\
        --budgets="(('latency_ms', 4.5), ('size_bytes', 700_000))"

Reads `config.json`, `lut/` and `search/deployed.json` of the run. Trains nothing; to train the best
subnet, run `qnas` with the same budgets as --config.search.budgets.
"""

from collections.abc import Sequence

from absl import flags
from ml_collections.config_flags.tuple_parser import TupleParser

from qnas_jax.bwnas import config, search_front
from qnas_jax.bwnas.lut import table
from qnas_jax.errors import InputError
from qnas_jax.hardware import deployment
from qnas_jax.hardware import target as targets
from qnas_jax.run import paths
from qnas_jax.run.stage import read_json
from qnas_jax.search import front
from qnas_jax.search.front import Point
from qnas_jax.space import COSTS

_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of a finished run.", required=True)
_BUDGETS = flags.DEFINE(
    TupleParser(), "budgets", (), "Pairs of a cost and its upper bound; as --config.search.budgets."
)
_EPSILON = flags.DEFINE_float("epsilon", 0.0, "As --config.search.epsilon; 0: the exact front.")
_TARGET = flags.DEFINE_string("target", None, "As --config.hardware.target. By default the run's.")
_TABLE = flags.DEFINE_string("table", None, "As --config.hardware.table. By default the run's.")
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
    if deployed.target.per_channel != targets.named(run["target"]).per_channel:
        rule = "the table is of networks with other scales of weights; make a run with this target"
        raise InputError(f"--target={name!r}: {rule}")
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
