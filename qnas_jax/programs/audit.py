"""Compares latencies predicted by a table with those of whole networks, measured here.

    qnas audit --config configs/streets.py --table runs/cpu.csv

Exports random subnets with random weights and times them on the table's runtime, with the same
number of threads. Each result is written at once to `hardware/audit.csv` in the run's folder; after
a stop, the same command continues. Writes `audit.json` and `audit.svg` next to it.
"""

import dataclasses

from absl import flags

from qnas_jax.bwnas.config import Config
from qnas_jax.errors import InputError
from qnas_jax.export import runtimes
from qnas_jax.hardware import measured
from qnas_jax.profiling import audit
from qnas_jax.profiling.timing import Effort
from qnas_jax.report import figures
from qnas_jax.run import artefacts, cli, disk, paths
from qnas_jax.stages import audit as audit_stage
from qnas_jax.stages.experiment import prepare

cli.define_run_flags()
_TABLE = flags.DEFINE_string(
    "table", None, "The latency table, a CSV file. By default --config.hardware.table."
)
_SUBNETS = flags.DEFINE_integer("subnets", 30, "How many subnets to measure.", lower_bound=2)
_WIDTH = flags.DEFINE_float(
    "width", Effort().width, "Repeat until the 95 % interval is at most this share of the latency."
)
_LIMIT = flags.DEFINE_float(
    "limit", Effort().limit_s, "Stop repeating after this many seconds for each file."
)


def main() -> None:
    """Audits the table; prints, writes and draws the results."""
    config, workdir = cli.run_flags(Config)
    if _TABLE.value is None and not config.hardware.table:
        raise InputError("--table: must be a table of measured latencies")
    given = config.hardware.table if _TABLE.value is None else _TABLE.value
    path = paths.named("--table", given)
    table = str(path)
    hardware = dataclasses.replace(config.hardware, table=table)
    config, problem, deployed = prepare(dataclasses.replace(config, hardware=hardware))
    rows = measured.read(path)
    runtime, threads = runtimes.named(rows[0].runtime), rows[0].threads
    conditions = (runtime.name, runtime.version, runtimes.device(), threads)
    measured.check_conditions(path, rows, conditions)
    effort = Effort(width=_WIDTH.value, limit_s=_LIMIT.value)
    folder, chosen = workdir / "hardware", config.space
    per_layer, image_size = chosen.bits_per == "layer", deployed.image_shape[:2]
    subnets = audit_stage.draw(problem.space, chosen.bits, per_layer, _SUBNETS.value, config.seed)
    shared = audit.Conditions(*conditions, *image_size, config.seed, table)
    with disk.only_one(folder):
        audited = audit_stage.audit(
            problem, deployed, subnets, shared, runtime, effort, folder / "audit.csv"
        )
    names = ("runtime", "runtime_version", "device", "threads")
    found = audit.verdict(audited) | dict(zip(names, conditions, strict=True))
    found |= {"picture": image_size, "seed": config.seed, "table": table}
    artefacts.write_json(folder / "audit.json", found)
    artefacts.write(folder / "audit.svg", figures.audit(*audit.pairs(audited)))
    for name in ("latency", "size"):
        tau, mape, bias = (found[f"{name}_{figure}"] for figure in ("tau", "mape", "bias"))
        print(f"{name:8s} tau {tau:.3f}   mean error {mape:.2f} %   bias {bias:+.2f} %")
    print(f"{len(audited)} subnets: {folder / 'audit.svg'}")
