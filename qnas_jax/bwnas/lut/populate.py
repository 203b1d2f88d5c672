"""Population of the look-up table: parts of blocks, chunks of images, any number of devices.

A *part* is a block's prefix tree with its first layer at one bitwidth. A *unit* of work is a
part on a chunk of images. The result of each unit is a small file, written whole or not at all,
so a population that was killed resumes, and several devices or processes that share the folder
fill the same table. The work itself is in `prefix_tree.py`.
"""

import dataclasses
import functools
import logging
import pathlib
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from qnas_jax import space
from qnas_jax.bwnas.lut import evaluate, prefix_tree, programs, targets, workload
from qnas_jax.bwnas.lut.table import Part
from qnas_jax.kernels.int8 import Kernel
from qnas_jax.nn import supernet
from qnas_jax.quant.calibrate import FindRange
from qnas_jax.run import artefacts, parallel, processes
from qnas_jax.run.log import Progress
from qnas_jax.run.parallel import Device
from qnas_jax.run.stage import reading

logger = logging.getLogger(__name__)

MAX_NODES_PER_PASS = 64
MEMORY_SHARE = 0.4  # of an accelerator's free memory, for one pass
CPU_PASS_BYTES = 48 * 2**20  # of a pass that should fit the caches
CPU_NODES = 2  # of a pass whose activations reach memory
LEAST_CHUNKS = 2  # done even when time is up: two halves to compare


class Method(NamedTuple):
    """How paths are quantized and run.

    Attributes:
      find_range: Finds the clipping range of an activation.
      per_channel: Whether each channel of an activation has its own range.
      kernel: Of int8 convolutions; None: noise is computed in float32.
      nodes_per_pass: Nodes of a tree that are run at once; 0: as many as memory allows.
    """

    find_range: FindRange
    per_channel: bool = False
    kernel: Kernel | None = None
    nodes_per_pass: int = 0

    @property
    def compute(self) -> str:
        """The arithmetic of the noise."""
        return "int8" if self.kernel else "float32"

    @property
    def calibration_compute(self) -> str:
        """The arithmetic of the calibration: int8 finds no ranges but min-max."""
        return prefix_tree.calibration_compute(self.kernel, self.find_range)


class Scores(NamedTuple):
    """The result of a population, for each row of the table, parts one after another.

    Attributes:
      nsr: float32[rows]; not finite if a path's output is not.
      by_chunk: float32[chunks done, rows], from each chunk of images alone.
      images: Number of images done.
    """

    nsr: np.ndarray
    by_chunk: np.ndarray
    images: int


@dataclasses.dataclass(frozen=True)
class Job:
    """A population.

    Attributes:
      features: The teacher's feature maps of some images.
      params: Each block's supernet.
      searched: Blocks and ops.
      parts: What to fill.
      calibration: Images for batch-norm statistics and ranges, run at once.
      chunks: Images for the NSR, each chunk run at once.
      method: How paths are quantized and run.
      folder: Holds the results so far. All processes must see it.
    """

    features: targets.Features
    params: Sequence[supernet.Params]
    searched: space.Space
    parts: Sequence[Part]
    calibration: range
    chunks: Sequence[range]
    method: Method
    folder: pathlib.Path

    @property
    def target_file(self) -> pathlib.Path:
        """The targets' variances."""
        return self.folder / "target.npz"

    def calibration_folder(self, part: int) -> pathlib.Path:
        """The folder of the calibration of a part."""
        return self.folder / f"calibration-{part:03d}"

    def noise_file(self, chunk: int, part: int) -> pathlib.Path:
        """The file of the result of a unit."""
        return self.folder / f"noise-{chunk:05d}-{part:03d}.npy"

    @functools.cached_property
    def maps(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The shapes of the feature maps of the first chunk."""
        return jax.eval_shape(lambda: self.features(self.chunks[0]))

    def units(self) -> list[tuple[int, int]]:
        """All chunks of all parts, as (chunk, part).

        Part by part, so that processes, which take every n-th unit, share each part evenly.
        """
        return [(c, i) for i in range(len(self.parts)) for c in range(len(self.chunks))]

    def works(self) -> list[workload.Work]:
        """The work of each part on one image."""
        return [
            workload.work(
                self.searched.blocks[part.block],
                self.searched.ops,
                part.bits,
                self.maps[part.block].shape[1:3],
            )
            for part in self.parts
        ]


def populate(job: Job, time_budget_s: float = 0) -> Scores:
    """The NSR of every path of every part; resumes from what the job's folder holds.

    Args:
      job: What to do.
      time_budget_s: No chunk is begun after so many seconds; 0: no limit.
    """
    begin = time.monotonic()
    works, units = job.works(), job.units()
    _announce(job, works)
    uncalibrated = [i for i in range(len(job.parts)) if not job.calibration_folder(i).exists()]
    left = [unit for unit in units if not job.noise_file(*unit).exists()]
    for chunk, part in set(units) - set(left):  # a damaged one is named before anything long
        _read_noise(job.noise_file(chunk, part), job.parts[part].rows)
    if len(left) < len(units):
        logger.info("lut: resumed, %d of %d units done", len(units) - len(left), len(units))
    gflop = [work.macs / 5e8 for work in works]
    # A bar of its own, as calibration takes longer per operation.
    to_calibrate = len(job.calibration) * sum(gflop[i] for i in uncalibrated)
    calibrating = Progress("lut calibration GFLOP", to_calibrate)
    scoring = Progress("lut GFLOP", sum(len(job.chunks[c]) * gflop[i] for c, i in left))
    if parallel.is_first():
        targets.write(job.target_file, job.features, job.chunks)
    processes.wait_for_all("targets")
    worker = _Worker(job, works, targets.read(job.target_file))

    def calibrate(part: int, device: Device) -> None:
        worker.calibrate(part, device)
        calibrating.add(gflop[part] * len(job.calibration))

    def score(unit: tuple[int, int], device: Device) -> None:
        chunk, part = unit
        late = time_budget_s and time.monotonic() - begin > time_budget_s
        if not late or chunk < LEAST_CHUNKS:
            worker.score(chunk, part, device)
            scoring.add(gflop[part] * len(job.chunks[chunk]), f"chunk {chunk + 1}")

    if len(parallel.team().devices) == 1:  # else each device's thread compiles what it runs
        worker.compile(uncalibrated, left, parallel.team().devices[0])
    parallel.spread(uncalibrated, calibrate)
    processes.wait_for_all("calibrated")
    parallel.spread(left, score)
    processes.wait_for_all("scored")
    found = scores(job)
    processes.wait_for_all("read")  # before a process deletes the files
    logger.info("lut: %d programs served %d rows", evaluate.compilations(), len(found.nsr))
    return found


def compile_ahead(job: Job) -> None:
    """Compiles what `populate` will run on one device; the parameters may be any numbers."""
    worker, device = _Worker(job, job.works(), ()), parallel.team().devices[0]
    worker.compile(range(len(job.parts)), job.units(), device)


class _Worker:
    """Runs units; keeps the trees that it has built, and each device's latest feature maps."""

    def __init__(self, job, works, variances):
        self._job, self._works, self._variances = job, works, variances
        self._trees: dict[tuple[Device, int], prefix_tree.PrefixTree] = {}
        self._latest = threading.local()  # a thread belongs to a device

    def compile(self, uncalibrated, left, device):
        """Compiles what a device's units will run, on all cores."""
        job, place = self._job, jax.sharding.SingleDeviceSharding(device)

        def maps(images, part):
            block = job.parts[part].block
            return [
                jax.ShapeDtypeStruct((images, *m.shape[1:]), m.dtype, sharding=place)
                for m in job.maps[block : block + 2]
            ]

        def found():
            compute = job.method.calibration_compute
            for part in uncalibrated:
                x, _ = maps(len(job.calibration), part)
                nodes = self._nodes_per_pass(part, len(job.calibration), compute, device)
                yield from programs.of_calibration(self._tree(part, device), x, nodes)
            for part, images in {(part, len(job.chunks[chunk])) for chunk, part in left}:
                x, target = maps(images, part)
                nodes = self._nodes_to_score(part, images, device)
                yield from programs.of_noise(self._tree(part, device), x, target, nodes)

        programs.compile_all(found(), default=device)  # as `parallel.spread` sets it

    def calibrate(self, part, device):
        x = self._maps(self._job.calibration, device)[self._job.parts[part].block]
        compute = self._job.method.calibration_compute
        nodes = self._nodes_per_pass(part, len(x), compute, device)
        with artefacts.writing_folder(self._job.calibration_folder(part)) as folder:
            prefix_tree.calibrate(self._tree(part, device), x, nodes, folder)

    def score(self, chunk, part, device):
        block, built = self._job.parts[part].block, self._tree(part, device)
        calibration = prefix_tree.load_calibration(self._job.calibration_folder(part), built)
        x, target = self._maps(self._job.chunks[chunk], device)[block : block + 2]
        nodes = self._nodes_to_score(part, len(x), device)
        noise = prefix_tree.noise(built, calibration, x, target, self._variances[block], nodes)
        pixels = target.size // target.shape[-1]
        with artefacts.writing(self._job.noise_file(chunk, part)) as file:
            np.save(file, noise / pixels)

    def _tree(self, part, device):
        job, key = self._job, (device, part)
        if key not in self._trees:
            block, bits, _ = job.parts[part]
            self._trees[key] = prefix_tree.build(
                jax.device_put(job.params[block], device),
                job.searched.blocks[block],
                job.searched.ops,
                bits,
                job.method.find_range,
                job.method.per_channel,
                job.method.kernel,
            )
        return self._trees[key]

    def _maps(self, images, device):
        if getattr(self._latest, "images", None) != images:
            self._latest.images = images
            self._latest.maps = jax.device_put(self._job.features(images), device)
        return self._latest.maps

    def _nodes_per_pass(self, part, images, compute, device):
        wanted = self._job.method.nodes_per_pass
        return wanted or nodes_per_pass(self._works[part].node_bytes(compute) * images, device)

    def _nodes_to_score(self, part, images, device):
        wanted, kernel = self._job.method.nodes_per_pass, self._job.method.kernel
        return wanted or nodes_to_score(self._works[part], images, kernel, device)


def nodes_to_score(work: workload.Work, images: int, kernel: Kernel | None, device: Device) -> int:
    """How many nodes to run at once for the noise; see `nodes_per_pass`."""
    if kernel == "C++":  # a call for many nodes takes less time than several calls
        return nodes_per_pass(work.fused_node_bytes() * images, device, MAX_NODES_PER_PASS)
    return nodes_per_pass(work.node_bytes("int8" if kernel else "float32") * images, device)


def nodes_per_pass(node_bytes: int, device: Device, on_cpu: int = CPU_NODES) -> int:
    """How many nodes, each of so many bytes, to run at once; on a CPU at most `on_cpu`."""
    free = parallel.free_bytes(device)
    if free is None:
        return min(max(CPU_PASS_BYTES // node_bytes, 1), on_cpu)
    return int(min(max(MEMORY_SHARE * free / node_bytes, 1), MAX_NODES_PER_PASS))


def scores(job: Job) -> Scores:
    """The scores from all chunks that are done for every part."""
    parts = range(len(job.parts))
    done = [c for c in range(len(job.chunks)) if all(job.noise_file(c, i).exists() for i in parts)]
    rows = [part.rows for part in job.parts]
    by_chunk = np.stack(
        [np.concatenate([_read_noise(job.noise_file(c, i), rows[i]) for i in parts]) for c in done]
    )
    images = np.array([len(job.chunks[c]) for c in done])
    nsr = images / images.sum() @ by_chunk
    return Scores(nsr.astype(np.float32), by_chunk.astype(np.float32), int(images.sum()))


def _read_noise(file: pathlib.Path, rows: int) -> np.ndarray:
    with reading(file) as content:
        if (found := np.load(content)).shape != (rows,):
            raise ValueError(f"it must have {rows} numbers")
        return found


def _announce(job: Job, works: Sequence[workload.Work]) -> None:
    rows = sum(part.rows for part in job.parts)
    images, compute = sum(map(len, job.chunks)), job.method.compute
    flop = 2 * sum(work.macs for work in works) * (images + len(job.calibration))
    calibrated_in = job.method.calibration_compute
    moved = sum(
        work.moved_bytes(compute) * images + work.moved_bytes(calibrated_in) * len(job.calibration)
        for work in works
    )
    logger.info(
        "lut: %d rows, %d images in %s and %d for calibration in %s: %.3g TFLOP, "
        "%.3g GB of activations",
        *(rows, images, compute, len(job.calibration), calibrated_in),
        *(flop / 1e12, moved / 1e9),
    )
