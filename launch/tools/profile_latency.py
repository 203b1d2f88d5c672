"""Fills a table of measured latencies, on a runtime of this machine.

    python launch/tools/profile_latency.py --config configs/streets.py --table runs/cpu.csv

Every op in every position of the search space, the stem and the head are timed at the size of
pictures as deployed (--config.hardware.picture="(512, 1024)"), each line as soon as it is known.
A profiling that was stopped goes on with the same command. docs/profiling.md says more.
"""

from qnas_jax.run import platform

if __name__ == "__main__":
    platform.prepare_process()  # before all other imports

import dataclasses

from absl import flags

from qnas_jax.errors import InputError
from qnas_jax.export import runtimes
from qnas_jax.profiling import probes, profile
from qnas_jax.profiling.timing import Effort
from qnas_jax.run import cli, disk, paths
from qnas_jax.stages.experiment import Problem, prepare

cli.define_run_flags()
_TABLE = flags.DEFINE_string("table", None, "The CSV file to fill.")
_RUNTIME = flags.DEFINE_string("runtime", "onnxruntime", "What runs the files.")
_THREADS = flags.DEFINE_integer("threads", 1, "How many the runtime has.", lower_bound=1)
_BLOCKS = flags.DEFINE_integer("blocks", 0, "Random paths of each block, too.", lower_bound=0)
_FLOAT = flags.DEFINE_bool("float", False, "The float network, too.")
_WIDTH = flags.DEFINE_float("width", Effort().width, "Goal: 95 % interval over the latency.")
_LIMIT = flags.DEFINE_float("limit", Effort().limit_s, "Seconds of runs to give up the goal at.")
_EXPORT_ONLY = flags.DEFINE_string("export_only", None, "Write files for a board to this folder.")


def main() -> None:
    """Times, or writes, what the table is to hold."""
    config, _ = cli.run_flags()
    runtime = runtimes.named(_RUNTIME.value)
    if _EXPORT_ONLY.value is not None:
        place = paths.folder("--export_only", _EXPORT_ONLY.value)
    elif _TABLE.value is not None:
        place = paths.file("--table", _TABLE.value)
    else:
        raise InputError("--table: must be the CSV file to fill")
    hardware = dataclasses.replace(config.hardware, table="")
    config, problem, deployed = prepare(dataclasses.replace(config, hardware=hardware))
    wanted = _wanted(problem, config.space.bits, deployed.image_shape, config.seed)
    if _EXPORT_ONLY.value is not None:
        profile.write_files(place, wanted, runtime)
        print(f"{len(wanted)} files: {place}")
        return
    runtimes.check_threads(_THREADS.value)
    effort = Effort(width=_WIDTH.value, limit_s=_LIMIT.value)
    with disk.only_one(place.parent):
        profile.fill(place, wanted, runtime, _THREADS.value, effort)
    print(f"table: {place}")


def _wanted(problem: Problem, bits, image_shape, seed) -> dict:
    with_float = (*bits, *((None,) if _FLOAT.value else ()))
    wanted = probes.layers(problem.student, problem.space, with_float, image_shape)
    if _BLOCKS.value:
        how = (bits, image_shape, _BLOCKS.value, seed)
        wanted |= probes.blocks(problem.student, problem.space, *how)
    return wanted


if __name__ == "__main__":
    cli.start(main)
