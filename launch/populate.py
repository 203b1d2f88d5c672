"""Fills the look-up table of a run with several processes, on one machine or many.

Each process, with its own number:

    python launch/populate.py --config configs/cityscapes.py --workdir runs/cityscapes \\
        --coordinator=HOST:PORT --processes=4 --process=0

The teacher and the supernet must have been trained (by `launch/main.py`), and all processes must
see the same folder. Afterwards `launch/main.py` goes on with the search. The table is the same
whatever the number of processes; one that is killed can be started again with all others.
"""

from qnas_jax import platform

if __name__ == "__main__":
    platform.prepare_process()  # before all other imports

import jax
from absl import flags
from jax.extend import backend

from qnas_jax import artefact, cli
from qnas_jax.errors import InputError
from qnas_jax.setting import prepare
from qnas_jax.stages import distillation, networks, population

cli.define_run_flags()
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many there are.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is.", lower_bound=0)


def main() -> None:
    """Fills the table together with the other processes."""
    config, workdir = cli.run_flags()
    platform.use_compilation_cache()
    setting = prepare(config, workdir)
    for name in ("teacher", "supernet"):
        if not artefact.is_finished(workdir / name):
            raise InputError(f"{workdir / name}: not finished; train it with launch/main.py first")
    # Read by each process for itself, before they know of each other.
    teacher, variables = networks.train_teacher(setting)
    distilled, params = distillation.train_supernet(setting, teacher, variables)
    variables, params = jax.device_get((variables, params))
    jax.clear_caches()
    backend.clear_backends()
    # Else JAX takes SIGTERM for itself, to tell all processes of it, and nobody would stop.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"--coordinator, --processes, --process: {error}") from None
    population.populate_table(setting, distilled, variables, params)


if __name__ == "__main__":
    cli.start(main)
