"""The order of the stages.

    pictures > teacher > supernet > table > front > retrained subnets > files > report

A stage (see `stages/`) finds its inputs, is skipped or resumed (see `artefact.py`), and
leaves its artefacts in the run's folder. The work itself lies in the rooms below.
"""

import pathlib
from typing import Any

from jaxtyping import PyTree

from qnas_jax import space
from qnas_jax.bwnas import inspection, populate_table, search_front, train_supernet
from qnas_jax.bwnas.config import Config
from qnas_jax.data.batching import stacked
from qnas_jax.export import runtimes
from qnas_jax.report import page
from qnas_jax.run import artefacts
from qnas_jax.run.stage import Stage, is_finished
from qnas_jax.stages import dry_run, measure
from qnas_jax.stages import export as export_stage
from qnas_jax.stages import latency as latency_stage
from qnas_jax.stages import train as train_stage
from qnas_jax.stages.experiment import Setting, prepare


def run(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Runs every stage that is not finished; returns what `report/results.json` holds.

    Only one process at a time may do that in a folder.

    Raises:
      InputError: A setting, a picture or an artefact cannot be used.
      Diverged: A loss or a state is no longer finite.
      Stopped: SIGTERM came; the same call goes on.
    """
    setting, teacher, variables = begin(config, workdir)
    distilled, params = train_supernet.train_supernet(setting, teacher, variables)
    populated, rows = populate_table.populate_table(setting, distilled, variables, params)
    how, deployed = setting.config.search, setting.deployment()
    searched, points = search_front.search_front(workdir, how, deployed, populated, rows)
    picked = search_front.chosen(points, how, setting.config.retrain.subnets)
    retrained = [
        train_stage.retrain(
            setting, distilled, variables, params, point, f"retrain {i}/{len(picked)}"
        )
        for i, point in enumerate(picked, 1)
    ]
    exported = [export_stage.export(setting, teacher, setting.teacher(), setting.teacher_subnet())]
    for point, stage in zip(picked, retrained, strict=True):
        subnet = space.parse_subnet(point.subnet)
        exported.append(export_stage.export(setting, stage, setting.student(subnet), subnet))
    timed = latency_stage.time_networks(setting, [point.subnet for point in picked])
    stages = [teacher, distilled, populated, searched, timed]
    results = write_report(setting, stages, retrained, exported)
    export_stage.check([stage.folder for stage in exported], config.export.max_miou_drop)
    return results


def begin(config: Config, workdir: pathlib.Path) -> tuple[Setting, Stage, PyTree]:
    """Runs the first stage alone: lays out the run and trains the teacher."""
    config.check()
    setting = prepare(config, workdir)
    inspection.inspect(setting)
    if not is_finished(workdir / "teacher"):
        dry_run.dry_run(setting, runtimes.named("onnxruntime"))
    if not (workdir / "config.json").exists():
        artefacts.write_json(workdir / "config.json", setting.config)
    return setting, *train_stage.train_teacher(setting)


def write_report(
    setting: Setting, stages: list[Stage], retrained: list[Stage], exported: list[Stage]
) -> dict[str, Any]:
    """Writes `report/` from what the stages left behind."""
    artefacts.write_json(setting.workdir / "config.json", setting.config)  # no stage refused it
    seconds = {stage.folder.name: round(stage.seconds, 1) for stage in stages}
    seconds["retrain"] = round(sum(stage.seconds for stage in retrained), 1)
    seconds["export"] = round(sum(stage.seconds for stage in exported), 1)
    samples = stacked(setting.val_data, range(min(measure.SAMPLES, len(setting.val_data))))
    folders = [stage.folder for stage in retrained]
    files = export_stage.told(
        [stage.folder for stage in exported], latency_stage.of_run(setting.workdir)
    )
    costs = setting.teacher_costs()
    return page.write(setting.workdir, seconds, folders, samples, costs, files)
