"""Fills the LUT: scores every path of every block."""

import dataclasses
import logging
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from qnas_jax.bwnas import distill
from qnas_jax.bwnas.config import Kernels, Lut, Space
from qnas_jax.bwnas.lut import agreement, layer_scales, populate, table, workload
from qnas_jax.data.batching import central_crops
from qnas_jax.hardware.deployment import Deployment
from qnas_jax.kernels import int8
from qnas_jax.nn import supernet
from qnas_jax.quant.calibrate import RANGES, min_max
from qnas_jax.run import artefacts, parallel, processes
from qnas_jax.run.stage import Stage, begun_with, defaults
from qnas_jax.stages.experiment import Problem
from qnas_jax.train import supervised

logger = logging.getLogger(__name__)

WEIGHTS_PER = "weights_per"  # in `lut.json`: "tensor" if each layer has one scale of weights


def populate_table(
    workdir: pathlib.Path,
    problem: Problem,
    deployed: Deployment,
    chosen: Space,
    how: Lut,
    kernels: Kernels,
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
      kernels: Whether kernels are compiled.
      crop: Height and width of the centres of the images.
      distilled: The stage of the supernet.
      variables: The teacher's variables.
      params: The supernet's parameters by block.
    """
    may_compile, per_layer = kernels.compile == "auto", chosen.bits_per == "layer"
    with processes.first_goes_first("lut"):
        begun = begun_with(workdir / "lut", "compute")
        compute = resolve_compute(how, may_compile, begun)
        made_from = _made_from(chosen, how, distilled, compute)
        if compute == "int8" and RANGES[how.ranges] is min_max:
            made_from["calibration"] = "int8"  # a table from before this was in float32
        if not deployed.target.per_channel:
            made_from[WEIGHTS_PER] = "tensor"
        stage = Stage(workdir / "lut", made_from, defaults(how))
        if parallel.is_first():
            stage.begin()
    if stage.done:
        return stage, table.load(stage.folder / "lut.npz")
    kernel = _kernel(may_compile) if compute == "int8" else None
    parts = table.parts_of(problem.space, chosen.bits, per_layer)
    folder = stage.folder / "partial"
    job = _job(problem, how, crop, parts, variables, params, kernel, folder)
    if not deployed.target.per_channel:
        job = dataclasses.replace(job, params=_with_layer_scales(job))
    found = populate.populate(job, how.time_budget_s)
    rows = table.build(found.nsr, problem.space, parts, deployed.target.per_channel)
    if parallel.is_first():
        _finish_table(deployed, stage, made_from, job, found, rows)
    processes.wait_for_all("table")
    return stage, rows


def compile_ahead(
    workdir: pathlib.Path,
    problem: Problem,
    deployed: Deployment,
    chosen: Space,
    how: Lut,
    kernels: Kernels,
    crop: tuple[int, int],
    variables: PyTree,
) -> None:
    """Compiles what `populate_table` will run, for a supernet that is not distilled yet.

    Does nothing where it would compile something else: if a table was begun, for several devices,
    with one scale of weights for a layer, or where free memory decides how much a pass computes.
    """
    team = parallel.team()
    fixed = team.count * len(team.devices) == 1 and parallel.free_bytes(team.devices[0]) is None
    if not fixed or (workdir / "lut").exists() or not deployed.target.per_channel:
        return
    found = int8.find_kernel(kernels.compile == "auto")
    kernel = None if how.a_ranges_per == "channel" else found.chosen(how.compute)
    key, searched = jax.random.key(0), problem.space
    shapes = jax.eval_shape(lambda: distill.init_supernet(key, searched))
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), list(shapes))
    parts = table.parts_of(searched, chosen.bits, chosen.bits_per == "layer")
    populate.compile_ahead(
        _job(problem, how, crop, parts, variables, ones, kernel, workdir / "lut" / "partial")
    )


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
    if found.reason:
        logger.warning("lut: float32, several times slower than int8 in C++: %s", found.reason)
    return "int8" if found.is_fast else "float32"


def _kernel(may_compile: bool) -> int8.Kernel:
    """The kernel of an int8 table; logs which, and why the fast one is missing."""
    found = int8.find_kernel(may_compile)
    if found.reason:
        logger.warning("lut: int8 in XLA, several times slower than in C++: %s", found.reason)
    else:
        logger.info("lut: int8 in %s", found.kernel)
    return found.kernel


def _made_from(chosen: Space, how: Lut, distilled: Stage, compute: str) -> dict[str, Any]:
    return {
        "supernet": distilled.hash,
        "bits": chosen.bits,
        "bits_per": chosen.bits_per,
        "calibration_images": how.calibration_images,
        "images": how.images,
        "images_per_pass": how.images_per_pass,
        "ranges": how.ranges,
        "a_ranges_per": how.a_ranges_per,
        "compute": compute,
        "time_budget_s": how.time_budget_s,
    }


def _job(problem, how, crop, parts, variables, params, kernel, folder) -> populate.Job:
    variables = jax.device_get(variables)  # else all devices' features are computed on one
    features = jax.jit(supervised.features(problem.teacher))
    starts = range(0, how.images, how.images_per_pass)
    return populate.Job(
        lambda indices: features(variables, central_crops(problem.train, indices, crop)),
        params,
        problem.space,
        parts,
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


def _with_layer_scales(job: populate.Job) -> list[supernet.Params]:
    """The supernet in which each convolution has one scale of weights."""
    maps, searched = job.features(job.calibration), job.searched
    return [
        layer_scales.with_ranges(params, block, searched.ops, x)
        for params, block, x in zip(job.params, searched.blocks, maps[:-1], strict=True)
    ]


def _finish_table(deployed, stage, made_from, job, found, rows) -> None:
    """Writes the table and what it was made with; deletes the partial results."""
    table.save(stage.folder / "lut.npz", rows)
    with artefacts.writing(stage.folder / "by_chunk.npy") as file:
        np.save(file, found.by_chunk)
    description = {
        **made_from,
        "images_done": found.images,
        "kernel": job.method.kernel or "XLA",
        "agreement": agreement.of_halves(found, rows),
        "ops": [str(op) for op in rows.ops],
        "blocks": job.searched.blocks,
        "fixed_size_bytes": deployed.fixed()["size_bytes"],
        "device": jax.devices()[0].device_kind,
        "seconds": round(stage.elapsed(), 1),
    }
    artefacts.write_json(stage.folder / "lut.json", description)
    stage.finish()
    shutil.rmtree(job.folder)
