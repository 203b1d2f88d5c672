"""Runs the whole search for a network and its bitwidths, and writes a report.

    python launch/main.py --config configs/streets.py
    qnas --config configs/streets.py --config.train.steps=300 --workdir runs/short

The two are the same program. Finished stages are skipped and partial ones are resumed, so after a
stop the same command continues the run.

It uses all devices of a machine, and several machines if it is started on each: by Slurm, by a
Kubernetes job or on the hosts of a TPU pod as it is, else once for each process with its number:

    qnas --config configs/cityscapes.py --coordinator=HOST:PORT --processes=4 --process=0

All processes must see the same folder. The results are those of one process up to rounding.
SIGTERM to one of them stops all. If one is killed, the others end with exit code 4 within a minute.
The same commands resume the run, also with other numbers of processes and devices. Several
processes on one machine with GPUs need CUDA_VISIBLE_DEVICES, one GPU each.
"""

import contextlib
import pathlib
import types
from typing import Any

from absl import flags

from qnas_jax.bwnas import config as bwnas_config
from qnas_jax.bwnas import pipeline as bwnas_pipeline
from qnas_jax.errors import InputError
from qnas_jax.haq import config as haq_config
from qnas_jax.haq import pipeline as haq_pipeline
from qnas_jax.hqnas import config as hqnas_config
from qnas_jax.hqnas import lifelong
from qnas_jax.hqnas import pipeline as hqnas_pipeline
from qnas_jax.oneshot import config as oneshot_config
from qnas_jax.oneshot import pipeline as oneshot_pipeline
from qnas_jax.ranking import pipeline as ranking_pipeline
from qnas_jax.run import cli, disk, meeting, parallel, platform, processes

# The system that searches, by the type of the config.
SYSTEMS: dict[type, types.ModuleType] = {
    bwnas_config.Config: bwnas_pipeline,
    haq_config.Config: haq_pipeline,
    hqnas_config.Config: hqnas_pipeline,
    oneshot_config.Config: oneshot_pipeline,
}

cli.define_run_flags()
_UNTIL = flags.DEFINE_enum("until", "report", ["teacher", "report"], "The last stage to run.")
_ADAPT = flags.DEFINE_string(
    "adapt", "", "A name: adapt the finished search of the folder as --config.adapt says (HQNAS)."
)
_AUDIT = flags.DEFINE_bool(
    "audit", False, "Train subnets, and say which score ranks them as training does (QA-BWNAS)."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0; [::1]:PORT for IPv6."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "The number of processes.", lower_bound=1)
_PROCESS = flags.DEFINE_integer(
    "process", None, "The number of this process, from 0.", lower_bound=0
)


def main() -> None:
    """Runs the system of the config; prints the results."""
    given, workdir = cli.run_flags(*SYSTEMS)
    system = SYSTEMS[type(given)]
    platform.use_compilation_cache()
    if _ADAPT.present and system is not hqnas_pipeline:
        raise InputError(f"--adapt={_ADAPT.value}: needs a config of HQNAS")
    if _ADAPT.present and _UNTIL.value == "teacher":
        raise InputError(f"--adapt={_ADAPT.value}: not together with --until=teacher")
    if _AUDIT.value and system is not bwnas_pipeline:
        raise InputError("--audit: needs a config of QA-BWNAS")
    if _AUDIT.value and _UNTIL.value == "teacher":
        raise InputError("--audit: not together with --until=teacher")
    several = meeting.meet(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    with processes.ending_together() if several else contextlib.nullcontext():
        with disk.only_one(workdir) if parallel.is_first() else contextlib.nullcontext():
            said = _work(system, given, workdir)
            processes.wait_for_all("done")
    if parallel.is_first():
        print(said)


def _work(system: types.ModuleType, given: Any, workdir: pathlib.Path) -> str:
    """Runs what the flags ask for; returns what is printed in the end."""
    if _UNTIL.value == "teacher":
        system.begin(given, workdir)
        return f"teacher: {workdir / 'teacher'}"
    if _AUDIT.value:
        found = processes.by_first("audit", lambda: ranking_pipeline.run(given, workdir))
        page = workdir / "audit" / "index.html"
        return f"{ranking_pipeline.as_text(found)}\nreport: {page}" if found else ""
    if _ADAPT.present:
        results = processes.by_first("adapt", lambda: lifelong.run(given, workdir, _ADAPT.value))
    else:
        results = system.run(given, workdir)
    page = workdir / "report" / "index.html"
    return f"{system.as_text(results)}\nreport: {page}" if results else ""
