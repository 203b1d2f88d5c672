"""The long stages of a run, supernet and table, by several processes on one machine or many.

Each process, with its own number:

    python launch/distributed.py --config configs/cityscapes.py --workdir runs/cityscapes \\
        --coordinator=HOST:PORT --processes=4 --process=0

Under Slurm, on TPU pods and in Kubernetes jobs the last three are found by themselves; see
the batch jobs in `launch/jobs/`. The teacher must have been trained (by `launch/main.py
--until=teacher`), and all processes must see the same folder. Afterwards `launch/main.py` goes
on with the search. The numbers are those of one process. If one is killed, start all again: they
go on. Several processes on one machine with GPUs need CUDA_VISIBLE_DEVICES, one GPU each.
"""

from qnas_jax import platform

if __name__ == "__main__":
    platform.prepare_process()  # before all other imports

import logging
import pathlib

import jax
from absl import flags

from qnas_jax import artefact, cli, parallel
from qnas_jax.config import Config
from qnas_jax.errors import InputError
from qnas_jax.setting import prepare
from qnas_jax.stages import distillation, networks, population

cli.define_run_flags()
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many there are.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is.", lower_bound=0)


def main() -> None:
    """Trains the supernet and fills the table together with the other processes."""
    config, workdir = cli.run_flags()
    platform.use_compilation_cache()
    if not artefact.is_finished(workdir / "teacher"):
        main_first = "train it with launch/main.py --until=teacher first"
        raise InputError(f"{workdir / 'teacher'}: not finished; {main_first}")
    try:
        jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"--coordinator, --processes, --process: {error}") from None
    if parallel.is_first():
        with artefact.only_one(workdir):
            _work(config, workdir)
    else:
        logging.getLogger("qnas_jax").setLevel(logging.WARNING)  # the first tells of progress
        _work(config, workdir)


def _work(config: Config, workdir: pathlib.Path) -> None:
    setting = prepare(config, workdir)
    teacher, variables = networks.train_teacher(setting)  # it is finished: only read
    distilled, params = distillation.train_supernet(setting, teacher, variables)
    population.populate_table(setting, distilled, variables, jax.device_get(params))


if __name__ == "__main__":
    cli.start(main)
