"""Makes the benchmark: trains and quantizes all networks, and may be stopped at any moment.

A network's figures are one file, and so are the teacher's. What a stop interrupts is done again,
from the same keys, so the result is the same.
"""

import concurrent.futures
import os
import pathlib
import threading

import jax
import jax.numpy as jnp
import numpy as np

from qnas_jax.benchmark import costs, distilled, networks, quantized, training
from qnas_jax.benchmark.networks import Plan
from qnas_jax.benchmark.table import Benchmark
from qnas_jax.benchmark.training import Images
from qnas_jax.run import artefacts
from qnas_jax.run.log import Progress
from qnas_jax.run.stage import Stage, reading
from qnas_jax.space import largest_op

TEACHER = "teacher.npz"


def generate(plan: Plan, workdir: pathlib.Path) -> tuple[Benchmark, float]:
    """Makes the benchmark, or what is missing of it.

    Args:
      plan: What it is made from.
      workdir: Its folder; files of networks are in `networks`.

    Returns:
      The benchmark, and the seconds that it took, without interruptions.

    Raises:
      InputError: The folder has networks of another plan, or a file is damaged.
    """
    stage = Stage(workdir / "networks", {"plan": plan})
    if not stage.done:
        stage.begin()
        train = training.rendered(plan, "train", plan.train_images)
        val = training.rendered(plan, "val", plan.val_images)
        _make_missing(plan, stage.folder, train, val)
        stage.finish()
    return _assembled(plan, stage.folder), stage.seconds


def _make_missing(plan: Plan, folder: pathlib.Path, train: Images, val: Images) -> None:
    """Writes the files that a folder lacks, a network on each core at a time."""
    todo = [n for n in range(plan.networks) if not _file(folder, n).exists()]
    done = plan.networks - len(todo)
    if not (folder / TEACHER).exists():
        _write(folder / TEACHER, _teacher(plan, train, val))
    progress, stopped = Progress("networks", plan.networks, done), threading.Event()
    lock = threading.Lock()

    def make(network: int) -> None:
        if stopped.is_set():
            return
        try:
            _write(_file(folder, network), _network(plan, network, train, val))
        except BaseException:
            stopped.set()
            raise
        with lock:
            nonlocal done
            done += 1
            progress.show(done)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for _ in pool.map(make, todo):
                pass
        finally:  # after Ctrl-C: each thread ends its network
            stopped.set()


def _file(folder: pathlib.Path, network: int) -> pathlib.Path:
    return folder / f"network{network:04}.npz"


def _write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    with artefacts.writing(path) as file:
        np.savez(file, **arrays)  # pyright: ignore  # their names are no arguments


def _read(path: pathlib.Path, *names: str) -> list[np.ndarray]:
    with reading(path) as file, np.load(file, allow_pickle=False) as arrays:
        return [arrays[name] for name in names]


def _network(plan: Plan, network: int, train: Images, val: Images) -> dict[str, np.ndarray]:
    """Right answers of a network: `right` [seeds, policies] and `float_right` [seeds]."""
    ops = jnp.asarray(networks.ops_of(plan, network), jnp.int32)
    calibration = train.images[: plan.calibration_images]
    right, float_right = [], []
    for seed in range(plan.seeds):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), seed), network)
        variables = training.train(plan, train, ops, key, plan.steps)
        float_right.append(training.right(plan, variables, val))
        right.append(quantized.right(plan, variables, calibration, val))
    found = {"right": right, "float_right": float_right}
    return {name: np.stack(jax.device_get(each)).astype(np.uint16) for name, each in found.items()}


def _teacher(plan: Plan, train: Images, val: Images) -> dict[str, np.ndarray]:
    """Right answers of the teacher, `teacher_right`, and the `nsr` of its blocks' ops."""
    ops = plan.space.ops.index(largest_op(plan.space.ops))
    everywhere = jnp.full(len(plan.space.blocks), ops, jnp.int32)
    progress = Progress("teacher and NSR, blocks", len(plan.space.blocks) + 1)
    teacher = training.train(plan, train, everywhere, jax.random.key(2), plan.teacher_steps)
    right = np.asarray(training.right(plan, teacher, val))
    progress.show(1)
    nsr = []
    for block in range(len(plan.space.blocks)):
        nsr.append(distilled.nsr_of_block(plan, block, teacher, train, val))
        progress.show(block + 2)
    return {"teacher_right": right, "nsr": np.stack(nsr)}


def _assembled(plan: Plan, folder: pathlib.Path) -> Benchmark:
    teacher_right, nsr = _read(folder / TEACHER, "teacher_right", "nsr")
    files = (_file(folder, n) for n in range(plan.networks))
    right, float_right = zip(*(_read(file, "right", "float_right") for file in files), strict=True)
    tables, fixed = costs.tables(plan)
    return Benchmark(
        space=plan.space,
        bits=plan.bits,
        images=plan.val_images,
        right=np.stack(right),
        float_right=np.stack(float_right),
        teacher_right=int(teacher_right),
        nsr=nsr,
        cost_tables=tables,
        fixed_costs=fixed,
    )
