"""Runs the whole search: python launch/main.py --config configs/streets.py

Every setting can be changed, e.g. --config.train.steps=300. Finished stages are skipped
and unfinished ones resumed: the same command goes on with a run that was stopped.
"""

from qnas_jax import platform

if __name__ == "__main__":
    platform.hide_cache_warnings()  # both before all other imports
    platform.use_huge_pages()  # it may start Python again

import pathlib

from absl import flags
from ml_collections import config_flags

from qnas_jax import artefact, cli, pipeline
from qnas_jax.report import page

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; by default runs/CONFIG.")
flags.mark_flag_as_required("config")


def main() -> None:
    """Runs the pipeline; prints what came of it."""
    path = config_flags.get_config_filename(flags.FLAGS["config"])
    platform.use_compilation_cache()
    config = cli.checked_config(_CONFIG.value, path)
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{pathlib.Path(path).stem}")
    config.check()
    with artefact.only_one(workdir):
        results = pipeline.run(config, workdir)
    print(page.as_text(results))
    print(f"report: {workdir / 'report' / 'index.html'}")


if __name__ == "__main__":
    cli.start(main)
