"""The order of the stages, and what each reads and writes.

    pictures > teacher > supernet > table > front > retrained subnets > report

The work itself lies in the rooms below. A stage here finds its inputs, is skipped or
resumed (see `artefact.py`), and leaves its artefacts in the run's folder.
"""

import logging
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from qnas_jax import (
    artefact,
    checkpoint,
    distill,
    lut,
    measure,
    parallel,
    segment,
    space,
    table,
    train,
)
from qnas_jax.artefact import Stage
from qnas_jax.config import Config
from qnas_jax.data.batching import stacked
from qnas_jax.errors import InputError
from qnas_jax.nn import init, layers, supernet
from qnas_jax.nn.deeplab import DeepLabV3
from qnas_jax.quant.calibrate import RANGES
from qnas_jax.report import page
from qnas_jax.runlog import Metrics
from qnas_jax.search import front
from qnas_jax.setting import CLASSES, Setting, prepare

logger = logging.getLogger(__name__)

# What keys are drawn for; each purpose has its own.
(TEACHER_INIT, TEACHER_TRAIN, SUPERNET_INIT, SUPERNET_TRAIN, RETRAIN_INIT, RETRAIN_TRAIN) = range(6)


def run(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Runs every stage that is not finished; returns what `report/results.json` holds.

    Only one process at a time may do that in a folder.

    Raises:
      InputError: A setting, a picture or an artefact cannot be used.
      Diverged: A loss is no longer finite.
    """
    config.check()
    setting = prepare(config, workdir)
    if 0 < config.search.budget_bytes < setting.least_bytes():
        least = f"the smallest subnet has {setting.least_bytes()}"
        raise InputError(f"search.budget_bytes={config.search.budget_bytes}: {least}")
    if not (workdir / "config.json").exists():
        artefact.write_json(workdir / "config.json", config)
    teacher, variables = train_teacher(setting)
    distilled, params = train_supernet(setting, teacher, variables)
    populated, rows = populate_table(setting, distilled, variables, params)
    searched, points = search_front(setting, populated, rows)
    picked = chosen(config, points)
    retrained = [
        retrain(setting, distilled, variables, params, point, f"retrain {i}/{len(picked)}")
        for i, point in enumerate(picked, 1)
    ]
    return write_report(setting, [teacher, distilled, populated, searched], retrained)


def train_teacher(setting: Setting) -> tuple[Stage, PyTree]:
    """Trains the teacher, or takes the one that the config names; measures it."""
    config = setting.config
    stage = Stage(
        setting.workdir / "teacher",
        {
            "data": setting.data_mark(),
            "network": config.network,
            "train": config.train,
            "teacher": config.teacher,
            "quantize": config.quantize,
            "seed": config.seed,
        },
    )
    model = setting.teacher()
    fresh = init.initialize(model, setting.key(TEACHER_INIT), (1, *config.train.crop, 3))
    if config.teacher.checkpoint and not stage.done:
        given = pathlib.Path(config.teacher.checkpoint)
        state = checkpoint.load(given, segment.fresh_state(fresh, _optimizer(config)))
        checkpoint.adopt(stage.folder / "checkpoint", config.train.steps, state)
        logger.info("teacher: taken from %s", given)
    variables = _train_network(setting, stage, model, fresh, TEACHER_TRAIN, "teacher")
    subnet = space.format_subnet(setting.teacher_subnet())
    _measure(setting, stage, model, variables, fresh["quant"], {"subnet": subnet})
    return stage, variables


def train_supernet(
    setting: Setting, teacher: Stage, variables: PyTree
) -> tuple[Stage, list[supernet.Params]]:
    """Distills the teacher into every block of the supernet."""
    config, how = setting.config, setting.config.supernet
    stage = Stage(
        setting.workdir / "supernet",
        {
            "teacher": teacher.hash,
            "kernels": config.space.kernels,
            "expansions": config.space.expansions,
            "depths": config.space.depths,
            "supernet": how,
            "seed": config.seed,
        },
    )
    optimizers = tuple(
        segment.sgd(lr, how.steps, how.power, how.momentum, how.weight_decay) for lr in how.lr
    )
    step = distill.train_step(
        segment.features(setting.teacher()),
        variables,
        setting.searched,
        optimizers,
        distill.SAMPLING[how.sampling],
        setting.key(SUPERNET_TRAIN),
    )
    state = distill.fresh_state(setting.searched, optimizers, setting.key(SUPERNET_INIT))
    state = _fit(setting, stage, step, state, how.steps, how.batch, "supernet")
    stage.finish()
    return stage, [block.params for block in state]


def populate_table(
    setting: Setting, distilled: Stage, variables: PyTree, params: list[supernet.Params]
) -> tuple[Stage, table.Table]:
    """Scores every path of every block, quantized; adds the sizes."""
    how = setting.config.lut
    made_from = {
        "supernet": distilled.hash,
        "bits": setting.bits,
        "bits_per": setting.config.space.bits_per,
        "calibration_images": how.calibration_images,
        "images": how.images,
        "images_per_pass": how.images_per_pass,
        "ranges": how.ranges,
        "a_ranges_per": how.a_ranges_per,
        "time_budget_s": how.time_budget_s,
    }
    with parallel.first_goes_first("lut"):
        stage = Stage(setting.workdir / "lut", made_from)
    if stage.done:
        return stage, table.load(stage.folder / "lut.npz")
    compute = jax.jit(segment.features(setting.teacher()))
    starts = range(0, how.images, how.images_per_pass)
    job = lut.Job(
        lambda indices: compute(variables, setting.training_crops(indices)),
        params,
        setting.searched,
        table.parts_of(setting.searched, setting.bits, setting.config.space.bits_per == "layer"),
        calibration=range(how.calibration_images),
        chunks=[range(s, min(s + how.images_per_pass, how.images)) for s in starts],
        method=lut.Method(RANGES[how.ranges], how.a_ranges_per == "channel", how.nodes_per_pass),
        folder=stage.folder / "partial",
    )
    found = lut.populate(job, how.time_budget_s)
    rows = table.build(found.nsr, setting.searched, job.parts)
    if parallel.is_first():
        _finish_table(setting, stage, made_from, job, found, rows)
    parallel.wait_for_all("table")
    return stage, rows


def _finish_table(setting, stage, made_from, job, found, rows) -> None:
    """Writes the table and how it came about; what is only half of it is deleted."""
    table.save(stage.folder / "lut.npz", rows)
    with artefact.writing(stage.folder / "by_chunk.npy") as file:
        np.save(file, found.by_chunk)
    description = {
        **made_from,
        "images_done": found.images,
        "agreement": lut.agreement(found, rows),
        "ops": [str(op) for op in rows.ops],
        "blocks": setting.searched.blocks,
        "fixed_size_bytes": setting.fixed_bytes(),
        "device": jax.devices()[0].device_kind,
        "seconds": round(stage.elapsed(), 1),
    }
    artefact.write_json(stage.folder / "lut.json", description)
    stage.finish()
    shutil.rmtree(job.folder)


def search_front(
    setting: Setting, populated: Stage, rows: table.Table
) -> tuple[Stage, list[front.Point]]:
    """Finds the exact front of (NSR, size) over all subnets."""
    stage = Stage(setting.workdir / "search", {"lut": populated.hash})
    file = stage.folder / "front.csv"
    if not stage.done:
        fixed = setting.fixed_bytes()
        points = front.search(rows, fixed["stem"], fixed["head"])
        front.write(file, points)
        stage.finish()
        logger.info("search: a front of %d subnets in %.2f s", len(points), stage.seconds)
    return stage, front.read(file)


def chosen(config: Config, points: list[front.Point]) -> list[front.Point]:
    """The subnets to retrain: spread over the front, and the best within the budget."""
    picked = front.spread(points, config.retrain.subnets)
    if config.search.budget_bytes:
        best = front.best_under(points, config.search.budget_bytes)
        picked += [] if best in picked else [best]
    return picked


def retrain(
    setting: Setting,
    distilled: Stage,
    teacher: PyTree,
    params: list[supernet.Params],
    point: front.Point,
    title: str,
) -> Stage:
    """Trains a subnet to the end and measures it, in float and quantized."""
    config = setting.config
    stage = Stage(
        setting.workdir / "retrain" / _folder_name(point.subnet),
        {"supernet": distilled.hash, "subnet": point.subnet, "init": config.retrain.init},
    )
    if stage.done:
        return stage
    subnet = space.parse_subnet(point.subnet)
    model = setting.student(subnet)
    fresh = init.initialize(model, setting.key(RETRAIN_INIT), (1, *config.train.crop, 3))
    quant = layers.with_bits(fresh["quant"], subnet)
    if config.retrain.init == "supernet":
        paths = [tuple(choice.op for choice in block) for block in subnet]
        blocks = {
            f"block{i + 1}": supernet.path_params(params[i], path) for i, path in enumerate(paths)
        }
        fresh = supernet.with_blocks(fresh, teacher, blocks)
    variables = _train_network(setting, stage, model, fresh, RETRAIN_TRAIN, title)
    _measure(setting, stage, model, variables, quant, {"subnet": point.subnet})
    return stage


def _folder_name(subnet: str) -> str:
    """The subnet, or its beginning and a hash where file systems would refuse its length."""
    return subnet if len(subnet) <= 200 else f"{subnet[:180]}-{artefact.digest(subnet)}"


def write_report(setting: Setting, stages: list[Stage], retrained: list[Stage]) -> dict[str, Any]:
    """Writes `report/` from what the stages left behind."""
    artefact.write_json(setting.workdir / "config.json", setting.config)  # no stage refused it
    seconds = {stage.folder.name: round(stage.seconds, 1) for stage in stages}
    seconds["retrain"] = round(sum(stage.seconds for stage in retrained), 1)
    samples = stacked(setting.val_data, range(min(measure.SAMPLES, len(setting.val_data))))
    return page.write(setting.workdir, seconds, [stage.folder for stage in retrained], samples)


def _train_network(setting, stage, model, fresh, purpose, title) -> PyTree:
    """Trains a network as `config.train` says; returns its variables."""
    how = setting.config.train
    optimizer = _optimizer(setting.config)
    step = segment.train_step(model, optimizer, setting.key(purpose))
    state = segment.fresh_state(fresh, optimizer)
    return _fit(setting, stage, step, state, how.steps, how.batch, title).variables()


def _optimizer(config: Config):
    how = config.train
    return segment.sgd(how.lr, how.steps, how.power, how.momentum, how.weight_decay)


def _fit(setting, stage, step, state, steps, batch, title):
    config = setting.config
    name = stage.folder.relative_to(setting.workdir).as_posix()
    with Metrics(setting.workdir, name) as metrics:
        return train.fit(
            step,
            state,
            lambda number: setting.training_batch(number, batch),
            steps=steps,
            folder=stage.folder / "checkpoint",
            save_every=config.run.save_every,
            title=title,
            metrics=metrics,
            log_every=config.run.log_every,
            threads=config.data.threads,
        )


def _measure(setting: Setting, stage: Stage, model: DeepLabV3, variables, quant, extra) -> None:
    """Writes `metrics.json` and some predictions; finishes the stage."""
    if stage.done:
        return
    how = setting.config.quantize
    starts = range(0, how.images, how.images_per_pass)
    chunks = (range(s, min(s + how.images_per_pass, how.images)) for s in starts)
    batches = (setting.training_crops(chunk) for chunk in chunks)
    quant = segment.calibrated(model, variables, quant, batches)
    found, samples = measure.accuracy(
        model, variables, quant, setting.val_data, setting.config.run.eval_batch, CLASSES
    )
    sizes = measure.sizes(model, quant, setting.val_data[0][0].shape)
    with artefact.writing(stage.folder / "samples.npz") as file:
        np.savez_compressed(file, allow_pickle=False, **samples)
    artefact.write_json(stage.folder / "metrics.json", {**extra, **found, **sizes})
    stage.finish()
    logger.info(
        "%s: mIoU %.2f %% in float, %.2f %% quantized, %.1f kB",
        stage.folder.name,  # "teacher", or the subnet
        found["miou_fp32"],
        found["miou_quantized"],
        sizes["size_bytes"] / 1e3,
    )
