"""Runs the whole search: python launch/main.py --config configs/streets.py

Every setting can be changed, e.g. --config.train.steps=300. Finished stages are skipped
and unfinished ones resumed: the same command goes on with a run that was stopped.
"""

from qnas_jax.run import platform

if __name__ == "__main__":
    platform.prepare_process()  # before all other imports

from absl import flags

from qnas_jax.bwnas import pipeline
from qnas_jax.report import outcome
from qnas_jax.run import cli, disk

cli.define_run_flags()
_UNTIL = flags.DEFINE_enum("until", "report", ["teacher", "report"], "The last stage to run.")


def main() -> None:
    """Runs the pipeline; prints what came of it."""
    config, workdir = cli.run_flags()
    platform.use_compilation_cache()
    with disk.only_one(workdir):
        if _UNTIL.value == "teacher":
            pipeline.begin(config, workdir)
            return
        results = pipeline.run(config, workdir)
    print(outcome.as_text(results))
    print(f"report: {workdir / 'report' / 'index.html'}")


if __name__ == "__main__":
    cli.start(main)
