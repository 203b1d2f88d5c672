"""Exports the teacher and the retrained subnets of a run for images of another size.

    qnas export --config configs/streets.py --config.hardware.picture="(512, 1024)"

Trains nothing. Writes `export/512x1024/` in the run's folder: the files of each network, and what
they compute on the validation images, resized. Networks that are already exported are skipped, so
after a stop the same command continues.
"""

from qnas_jax.bwnas import finished
from qnas_jax.run import cli, disk, platform
from qnas_jax.stages import export as export_stage
from qnas_jax.stages.experiment import prepare

cli.define_run_flags()


def main() -> None:
    """Exports the networks; prints sizes and mIoU of the files."""
    config, workdir = cli.run_flags()
    platform.use_compilation_cache()
    setting = prepare(config, workdir)
    networks = finished.trained(setting)
    with disk.only_one(workdir):
        folders = [export_stage.export(setting, *network).folder for network in networks]
    height, width, _ = setting.picture()
    print(f"{len(setting.val_data)} images of {height} x {width}: {folders[0].parent}")
    print(export_stage.as_text(folders))
    export_stage.check(folders, config.export.max_miou_drop)
