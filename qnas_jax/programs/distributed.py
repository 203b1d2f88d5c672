"""Runs the long stages, supernet and LUT, in several processes on one or more machines.

    qnas distributed --config configs/cityscapes.py --workdir runs/cityscapes \\
        --coordinator=HOST:PORT --processes=4 --process=0

Start this once for each process, each with its own number. Under Slurm, on TPU pods and in
Kubernetes jobs, leave out the last three flags: JAX finds their values (see the batch jobs in
`launch/jobs/`). Train the teacher first (`qnas --until=teacher`); all processes must see the same
folder. Afterwards `qnas` continues with the search. The results are those of one process. If one
process is killed, the others end with exit code 4 within a minute; start all of them again to
resume. Several processes on one machine with GPUs need CUDA_VISIBLE_DEVICES, one GPU each.
"""

import logging
import pathlib
import time

import jax
from absl import flags

from qnas_jax.bwnas import inspection, populate_table, train_supernet
from qnas_jax.bwnas.config import Config
from qnas_jax.errors import InputError, ProcessLost
from qnas_jax.run import cli, disk, parallel, platform, preempt
from qnas_jax.run.stage import is_finished
from qnas_jax.stages import fit
from qnas_jax.stages import train as train_stage
from qnas_jax.stages.experiment import prepare

logger = logging.getLogger("qnas_jax.distributed")

WAIT_S, HEARTBEAT_S, GRACE_S = 300, 30, 5

cli.define_run_flags()
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0; [::1]:PORT for IPv6."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "The number of processes.", lower_bound=1)
_PROCESS = flags.DEFINE_integer(
    "process", None, "The number of this process, from 0.", lower_bound=0
)


def main() -> None:
    """Trains the supernet and fills the LUT together with the other processes."""
    config, workdir = cli.run_flags(Config)
    platform.use_compilation_cache()
    if not is_finished(workdir / "teacher"):
        first = "train it with qnas --until=teacher first"
        raise InputError(f"{workdir / 'teacher'}: not finished; {first}")
    _meet()
    try:
        if parallel.is_first():
            with disk.only_one(workdir):
                _work(config, workdir)
        else:
            logging.getLogger("qnas_jax").setLevel(logging.WARNING)  # the first process reports
            _work(config, workdir)
    except InputError:
        if parallel.is_first():  # the others meet the same error and need it to end in order
            time.sleep(GRACE_S)
        raise
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).splitlines()[0][:200]
        raise ProcessLost(f"a process is gone or failed ({reason}); start all again") from None


def _meet() -> None:
    """Waits for the other processes.

    Raises:
      InputError: The flags cannot be used, or the coordinator does not answer.
    """
    given = [_COORDINATOR.value, _PROCESSES.value, _PROCESS.value]
    if any(value is not None for value in given):
        if None in given:
            raise InputError("--coordinator, --processes, --process: give all three or none")
        host, port = parallel.address("--coordinator", _COORDINATOR.value or "")
        if given[2] >= given[1]:
            raise InputError(f"--process={given[2]}: must be below --processes={given[1]}")
        wait = f"waiting up to {WAIT_S // 60} minutes"
        logger.info("%s for all %d processes at %s", wait, given[1], given[0])
        if given[2]:
            parallel.wait_for_port(host, port, WAIT_S)
    try:
        jax.distributed.initialize(
            *given, initialization_timeout=WAIT_S, heartbeat_timeout_seconds=HEARTBEAT_S
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"--coordinator, --processes, --process: {error}") from None


def _work(given: Config, workdir: pathlib.Path) -> None:
    config, problem, deployed = prepare(given)
    how = fit.training(config)
    inspection.check_norms(config, problem)
    teacher, variables = train_stage.train_teacher(  # finished, so only read
        workdir, problem, how, config.network, config.teacher
    )
    distilled, params = train_supernet.train_supernet(
        workdir, problem, how, config.space, config.supernet, teacher.stage, variables
    )
    with preempt.raising():  # after the training, JAX no longer handles SIGTERM
        populate_table.populate_table(
            workdir, problem, deployed, config.space, config.lut, config.kernels, how.train.crop,
            distilled, variables, jax.device_get(params),
        )  # fmt: skip
