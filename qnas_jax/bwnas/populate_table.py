"""Fills the LUT: scores every path of every block."""

import pathlib
import shutil

import jax
import numpy as np
from jaxtyping import PyTree

from qnas_jax.bwnas.config import Lut, Space
from qnas_jax.bwnas.lut import populate, table
from qnas_jax.data.batching import central_crops
from qnas_jax.hardware.deployment import Deployment
from qnas_jax.kernels import int8
from qnas_jax.nn import supernet
from qnas_jax.quant.calibrate import RANGES
from qnas_jax.run import artefacts, parallel
from qnas_jax.run.stage import Stage, defaults
from qnas_jax.stages.experiment import Problem
from qnas_jax.train import supervised


def populate_table(
    workdir: pathlib.Path,
    problem: Problem,
    deployed: Deployment,
    chosen: Space,
    how: Lut,
    crop: tuple[int, int],
    distilled: Stage,
    variables: PyTree,
    params: list[supernet.Params],
) -> tuple[Stage, table.Table]:
    """Scores every path of every block, quantized; adds the sizes.

    Args:
      workdir: The folder of the run.
      problem: Images, teacher and search space.
      deployed: Has the convolutions that are in no block.
      chosen: The settings of the search space.
      how: How paths are scored.
      crop: Height and width of the centres of the images.
      distilled: The stage of the supernet.
      variables: The teacher's variables.
      params: The supernet's parameters by block.
    """
    searched, per_layer = problem.space, chosen.bits_per == "layer"
    per_tensor = how.a_ranges_per == "tensor"
    made_from = {
        "supernet": distilled.hash,
        "bits": chosen.bits,
        "bits_per": chosen.bits_per,
        "calibration_images": how.calibration_images,
        "images": how.images,
        "images_per_pass": how.images_per_pass,
        "ranges": how.ranges,
        "a_ranges_per": how.a_ranges_per,
        "compute": how.compute,
        "time_budget_s": how.time_budget_s,
    }
    with parallel.first_goes_first("lut"):
        stage = Stage(workdir / "lut", made_from, defaults(how))
        if parallel.is_first():
            stage.begin()
    if stage.done:
        return stage, table.load(stage.folder / "lut.npz")
    variables = jax.device_get(variables)  # else all devices' features are computed on one
    compute = jax.jit(supervised.features(problem.teacher))
    starts = range(0, how.images, how.images_per_pass)
    job = populate.Job(
        lambda indices: compute(variables, central_crops(problem.train, indices, crop)),
        params,
        searched,
        table.parts_of(searched, chosen.bits, per_layer),
        calibration=range(how.calibration_images),
        chunks=[range(s, min(s + how.images_per_pass, how.images)) for s in starts],
        method=populate.Method(
            RANGES[how.ranges],
            per_channel=not per_tensor,
            in_bytes=how.compute == "fastest" and per_tensor and int8.is_fast(),
            nodes_per_pass=how.nodes_per_pass,
        ),
        folder=stage.folder / "partial",
    )
    found = populate.populate(job, how.time_budget_s)
    rows = table.build(found.nsr, searched, job.parts)
    if parallel.is_first():
        _finish_table(deployed, stage, made_from, job, found, rows)
    parallel.wait_for_all("table")
    return stage, rows


def _finish_table(deployed, stage, made_from, job, found, rows) -> None:
    """Writes the table and how it came about; what is only half of it is deleted."""
    table.save(stage.folder / "lut.npz", rows)
    with artefacts.writing(stage.folder / "by_chunk.npy") as file:
        np.save(file, found.by_chunk)
    description = {
        **made_from,
        "images_done": found.images,
        "in_bytes": job.method.in_bytes,
        "agreement": populate.agreement(found, rows),
        "ops": [str(op) for op in rows.ops],
        "blocks": job.searched.blocks,
        "fixed_size_bytes": deployed.fixed()["size_bytes"],
        "device": jax.devices()[0].device_kind,
        "seconds": round(stage.elapsed(), 1),
    }
    artefacts.write_json(stage.folder / "lut.json", description)
    stage.finish()
    shutil.rmtree(job.folder)
