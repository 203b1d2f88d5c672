"""The LUT: every path of every block, scored."""

import logging
import shutil
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from qnas_jax.bwnas.lut import populate, table, workload
from qnas_jax.kernels import int8
from qnas_jax.nn import supernet
from qnas_jax.quant.calibrate import RANGES
from qnas_jax.run import artefacts, parallel
from qnas_jax.run.artefacts import Stage
from qnas_jax.run.config import Lut
from qnas_jax.stages.experiment import Setting
from qnas_jax.train import supervised

logger = logging.getLogger(__name__)


def populate_table(
    setting: Setting, distilled: Stage, variables: PyTree, params: list[supernet.Params]
) -> tuple[Stage, table.Table]:
    """Scores every path of every block, quantized; adds the sizes."""
    may_compile = setting.config.kernels.compile == "auto"
    with parallel.first_goes_first("lut"):
        begun = artefacts.begun_with(setting.workdir / "lut", "compute")
        compute = resolve_compute(setting.config.lut, may_compile, begun)
        made_from = _made_from(setting, distilled, compute)
        stage = Stage(setting.workdir / "lut", made_from)
        if parallel.is_first():
            stage.begin()
    if stage.done:
        return stage, table.load(stage.folder / "lut.npz")
    kernel = _kernel(may_compile) if compute == "int8" else None
    job = _job(setting, variables, params, kernel, stage.folder / "partial")
    found = populate.populate(job, setting.config.lut.time_budget_s)
    rows = table.build(found.nsr, setting.searched, job.parts)
    if parallel.is_first():
        _finish_table(setting, stage, made_from, job, found, rows)
    parallel.wait_for_all("table")
    return stage, rows


def resolve_compute(how: Lut, may_compile: bool, begun: str | None) -> str:
    """The arithmetic of a table, "int8" or "float32"; logs why "auto" does not become int8.

    Args:
      how: The settings.
      may_compile: Whether a C++ compiler may be started.
      begun: The arithmetic of a table that was begun, which "auto" keeps on any machine; None
        if there is none.
    """
    if how.compute != "auto":
        return how.compute
    if how.a_ranges_per == "channel":
        if begun is None:
            logger.info("lut: float32, as lut.a_ranges_per=channel; int8 has one range for all")
        return "float32"
    if begun in workload.VALUE_BYTES:
        return begun
    found = int8.find_kernel(may_compile)
    if not found.is_fast:
        logger.warning("lut: float32, several times slower than int8 in C++: %s", found.reason)
    return "int8" if found.is_fast else "float32"


def _kernel(may_compile: bool) -> int8.Kernel:
    """The kernel of an int8 table; logs which, and why the fast one is missing."""
    found = int8.find_kernel(may_compile)
    if found.is_fast:
        logger.info("lut: int8 in %s", found.kernel)
    else:
        logger.warning("lut: int8 in XLA, several times slower than in C++: %s", found.reason)
    return found.kernel


def _made_from(setting, distilled, compute) -> dict[str, Any]:
    how = setting.config.lut
    return {
        "supernet": distilled.hash,
        "bits": setting.bits,
        "bits_per": setting.config.space.bits_per,
        "calibration_images": how.calibration_images,
        "images": how.images,
        "images_per_pass": how.images_per_pass,
        "ranges": how.ranges,
        "a_ranges_per": how.a_ranges_per,
        "compute": compute,
        "time_budget_s": how.time_budget_s,
    }


def _job(setting, variables, params, kernel, folder) -> populate.Job:
    how = setting.config.lut
    variables = jax.device_get(variables)  # else all devices' features are computed on one
    features = jax.jit(supervised.features(setting.teacher()))
    starts = range(0, how.images, how.images_per_pass)
    return populate.Job(
        lambda indices: features(variables, setting.training_crops(indices)),
        params,
        setting.searched,
        table.parts_of(setting.searched, setting.bits, setting.config.space.bits_per == "layer"),
        calibration=range(how.calibration_images),
        chunks=[range(s, min(s + how.images_per_pass, how.images)) for s in starts],
        method=populate.Method(
            RANGES[how.ranges],
            per_channel=how.a_ranges_per == "channel",
            kernel=kernel,
            nodes_per_pass=how.nodes_per_pass,
        ),
        folder=folder,
    )


def _finish_table(setting, stage, made_from, job, found, rows) -> None:
    """Writes the table and what it was made with; deletes the partial results."""
    table.save(stage.folder / "lut.npz", rows)
    with artefacts.writing(stage.folder / "by_chunk.npy") as file:
        np.save(file, found.by_chunk)
    description = {
        **made_from,
        "images_done": found.images,
        "kernel": job.method.kernel or "XLA",
        "agreement": populate.agreement(found, rows),
        "ops": [str(op) for op in rows.ops],
        "blocks": setting.searched.blocks,
        "fixed_size_bytes": setting.fixed_bytes(),
        "device": jax.devices()[0].device_kind,
        "seconds": round(stage.elapsed(), 1),
    }
    artefacts.write_json(stage.folder / "lut.json", description)
    stage.finish()
    shutil.rmtree(job.folder)
