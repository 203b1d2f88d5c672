"""The teacher and the retrained subnets of a run as files for pictures of another size.

    python launch/tools/export.py --config configs/streets.py \\
        --config.hardware.picture="(512, 1024)"

Trains nothing. Leaves `export/512x1024/` in the run's folder, with the files of each network and
what they compute on the validation pictures, resized. Networks that were exported are not
exported again: the same command goes on.
"""

from qnas_jax.run import platform

if __name__ == "__main__":
    platform.prepare_process()  # before all other imports

from qnas_jax.bwnas import finished
from qnas_jax.run import cli, disk
from qnas_jax.stages import export as export_stage
from qnas_jax.stages.experiment import prepare

cli.define_run_flags()


def main() -> None:
    """Exports the networks; prints what their files hold and compute."""
    config, workdir = cli.run_flags()
    platform.use_compilation_cache()
    setting = prepare(config, workdir)
    networks = finished.trained(setting)
    with disk.only_one(workdir):
        folders = [export_stage.export(setting, *network).folder for network in networks]
    height, width, _ = setting.picture()
    print(f"{len(setting.val_data)} pictures of {height} x {width}: {folders[0].parent}")
    print(export_stage.as_text(folders))
    export_stage.check(folders, config.export.max_miou_drop)


if __name__ == "__main__":
    cli.start(main)
