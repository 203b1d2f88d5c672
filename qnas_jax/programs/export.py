"""Exports the teacher and the retrained subnets of a run for images of another size.

    qnas export --config configs/streets.py --config.hardware.image_size="(512, 1024)"

Trains nothing. Writes `export/512x1024/` in the run's folder: the files of each network, and what
they compute on the validation images, resized. Networks that are already exported are skipped, so
after a stop the same command continues.
"""

from qnas_jax.bwnas import finished
from qnas_jax.bwnas.config import Config
from qnas_jax.run import cli, disk, platform
from qnas_jax.stages import export as export_stage
from qnas_jax.stages import fit, qat
from qnas_jax.stages.experiment import prepare

cli.define_run_flags()


def main() -> None:
    """Exports the networks; prints sizes and mIoU of the files."""
    config, workdir = cli.run_flags(Config)
    platform.use_compilation_cache()
    config, problem, deployed = prepare(config)
    how, networks = fit.training(config), finished.trained(workdir, config, problem)
    networks = qat.finished(workdir, config.retrain, networks)
    with disk.only_one(workdir):
        stages = export_stage.export_all(workdir, problem, how, deployed, networks)
    folders, (height, width, _) = [stage.folder for stage in stages], deployed.image_shape
    print(f"{len(problem.val)} images of {height} x {width}: {folders[0].parent}")
    print(export_stage.as_text(folders, problem.task))
    export_stage.check(folders, problem.task, config.export.max_drop)
