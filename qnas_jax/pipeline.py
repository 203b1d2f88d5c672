"""The order of the stages.

    pictures > teacher > supernet > table > front > retrained subnets > files > report

A stage (see `stages/`) finds its inputs, is skipped or resumed (see `artefact.py`), and
leaves its artefacts in the run's folder. The work itself lies in the rooms below.
"""

import pathlib
from typing import Any

from jaxtyping import PyTree

from qnas_jax import artefact, measure, space
from qnas_jax.artefact import Stage
from qnas_jax.config import Config
from qnas_jax.data.batching import stacked
from qnas_jax.export import runtimes
from qnas_jax.report import page
from qnas_jax.setting import Setting, prepare
from qnas_jax.stages import (
    distillation,
    exporting,
    latencies,
    networks,
    population,
    rehearsal,
    selection,
)


def run(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Runs every stage that is not finished; returns what `report/results.json` holds.

    Only one process at a time may do that in a folder.

    Raises:
      InputError: A setting, a picture or an artefact cannot be used.
      Diverged: A loss or a state is no longer finite.
      Stopped: SIGTERM came; the same call goes on.
    """
    setting, teacher, variables = begin(config, workdir)
    distilled, params = distillation.train_supernet(setting, teacher, variables)
    populated, rows = population.populate_table(setting, distilled, variables, params)
    searched, points = selection.search_front(setting, populated, rows)
    picked = selection.chosen(setting.config, points)
    retrained = [
        networks.retrain(setting, distilled, variables, params, point, f"retrain {i}/{len(picked)}")
        for i, point in enumerate(picked, 1)
    ]
    exported = [exporting.export(setting, teacher, setting.teacher(), setting.teacher_subnet())]
    for point, stage in zip(picked, retrained, strict=True):
        subnet = space.parse_subnet(point.subnet)
        exported.append(exporting.export(setting, stage, setting.student(subnet), subnet))
    timed = latencies.time_networks(setting, [point.subnet for point in picked])
    stages = [teacher, distilled, populated, searched, timed]
    results = write_report(setting, stages, retrained, exported)
    exporting.check([stage.folder for stage in exported], config.export.max_miou_drop)
    return results


def begin(config: Config, workdir: pathlib.Path) -> tuple[Setting, Stage, PyTree]:
    """Runs the first stage alone: lays out the run and trains the teacher."""
    config.check()
    setting = prepare(config, workdir)
    setting.check_target()
    if not artefact.is_finished(workdir / "teacher"):
        rehearsal.dry_run(setting, runtimes.named("onnxruntime"))
    if not (workdir / "config.json").exists():
        artefact.write_json(workdir / "config.json", setting.config)
    return setting, *networks.train_teacher(setting)


def write_report(
    setting: Setting, stages: list[Stage], retrained: list[Stage], exported: list[Stage]
) -> dict[str, Any]:
    """Writes `report/` from what the stages left behind."""
    artefact.write_json(setting.workdir / "config.json", setting.config)  # no stage refused it
    seconds = {stage.folder.name: round(stage.seconds, 1) for stage in stages}
    seconds["retrain"] = round(sum(stage.seconds for stage in retrained), 1)
    seconds["export"] = round(sum(stage.seconds for stage in exported), 1)
    samples = stacked(setting.val_data, range(min(measure.SAMPLES, len(setting.val_data))))
    folders = [stage.folder for stage in retrained]
    files = exporting.told([stage.folder for stage in exported], latencies.of_run(setting.workdir))
    costs = setting.teacher_costs()
    return page.write(setting.workdir, seconds, folders, samples, costs, files)
