"""Fills a table of latencies, measured on a runtime of this machine.

    qnas profile_latency --config configs/streets.py --table runs/cpu.csv

Times every op in every position of the search space, the stem and the head, at the size of images
as deployed (--config.hardware.image_size="(512, 1024)"). Each row is written at once; after a stop,
the same command continues. docs/profiling.md says more.
"""

import dataclasses

from absl import flags

from qnas_jax.bwnas.config import Config
from qnas_jax.errors import InputError
from qnas_jax.export import runtimes
from qnas_jax.profiling import probes, profile, synthetic
from qnas_jax.profiling.timing import Effort
from qnas_jax.run import cli, disk, paths
from qnas_jax.stages.experiment import Problem, prepare

cli.define_run_flags()
_TABLE = flags.DEFINE_string("table", None, "The latency table to fill, a CSV file.")
_RUNTIME = flags.DEFINE_string("runtime", "onnxruntime", "The runtime: onnxruntime or litert.")
_THREADS = flags.DEFINE_integer("threads", 1, "Threads of the runtime.", lower_bound=1)
_BLOCKS = flags.DEFINE_integer(
    "blocks", 0, "Also time this many random paths of each block.", lower_bound=0
)
_FLOAT = flags.DEFINE_bool("float", False, "Also time the float network.")
_WIDTH = flags.DEFINE_float(
    "width", Effort().width, "Repeat until the 95 % interval is at most this share of the latency."
)
_LIMIT = flags.DEFINE_float(
    "limit", Effort().limit_s, "Stop repeating after this many seconds for each file."
)
_EXPORT_ONLY = flags.DEFINE_string(
    "export_only", None, "Time nothing; write the files for a board to this folder."
)


def main() -> None:
    """Times the probes of the table, or writes their files."""
    config, _ = cli.run_flags(Config)
    runtime = runtimes.named(_RUNTIME.value)
    if _EXPORT_ONLY.value is not None:
        place = paths.folder("--export_only", _EXPORT_ONLY.value)
    elif _TABLE.value is not None:
        place = paths.file("--table", _TABLE.value)
    else:
        raise InputError("--table: must be the CSV file to fill")
    hardware = dataclasses.replace(config.hardware, table="")
    config, problem, deployed = prepare(dataclasses.replace(config, hardware=hardware))
    how = config.space.bits, deployed.image_shape, config.seed, deployed.target.per_channel
    wanted = _wanted(problem, *how)
    if _EXPORT_ONLY.value is not None:
        profile.write_files(place, wanted, runtime)
        print(f"{len(wanted)} files: {place}")
        return
    runtimes.check_threads(_THREADS.value)
    effort = Effort(width=_WIDTH.value, limit_s=_LIMIT.value)
    with disk.only_one(place.parent):
        profile.fill(place, wanted, runtime, _THREADS.value, effort)
    print(f"table: {place}")


def _wanted(problem: Problem, bits, image_shape, seed, per_channel: bool) -> dict:
    with_float = (*bits, *((None,) if _FLOAT.value else ()))
    wanted = probes.layers(problem.student, problem.space, with_float, image_shape)
    if _BLOCKS.value:
        how = (bits, image_shape, _BLOCKS.value, seed)
        wanted |= probes.blocks(problem.student, problem.space, *how)
    if not per_channel:
        wanted = {key: synthetic.with_layer_scales(part) for key, part in wanted.items()}
    return wanted
