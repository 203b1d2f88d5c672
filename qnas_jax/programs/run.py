"""Runs the whole search for a network and its bitwidths, and writes a report.

    python launch/main.py --config configs/streets.py
    qnas --config configs/streets.py --config.train.steps=300 --workdir runs/short

The two are the same program. Finished stages are skipped and partial ones are resumed, so after a
stop the same command continues the run.
"""

import types

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
from qnas_jax.run import cli, disk, platform

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
    with disk.only_one(workdir):
        if _UNTIL.value == "teacher":
            system.begin(given, workdir)
            return
        if _AUDIT.value:
            print(ranking_pipeline.as_text(ranking_pipeline.run(given, workdir)))
            print(f"report: {workdir / 'audit' / 'index.html'}")
            return
        if _ADAPT.present:
            results = lifelong.run(given, workdir, _ADAPT.value)
        else:
            results = system.run(given, workdir)
    print(system.as_text(results))
    print(f"report: {workdir / 'report' / 'index.html'}")
