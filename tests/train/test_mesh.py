"""Whole networks on several devices; the devices are made up by XLA, in processes apart."""

import contextlib
import functools
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.data.batching import Batch
from qnas_jax.errors import InputError
from qnas_jax.nn import init, mobilenet
from qnas_jax.nn.deeplab import DeepLabV3
from qnas_jax.run import meeting, parallel
from qnas_jax.run.log import Metrics
from qnas_jax.tasks import segmentation
from qnas_jax.train import loop, mesh, optimizers, supervised
from qnas_jax.train.distillation import Distillation

BATCH, STEPS = 8, 3
CLOSE = 5e-3  # of the largest of a kind: sums in another order, and three steps on
BLOCKS = (space.Block(8, 8, 2, 1, 2), space.Block(8, 12, 1, 2, 1))
PATHS = ((space.Op(3, 3), space.Op(5, 2)), (space.Op(7, 2),))


def _batch(number: int) -> Batch:
    """This process's share of a batch."""
    rng = np.random.default_rng(number)
    images = rng.integers(0, 256, (BATCH, 32, 48, 3)).astype(np.uint8)
    labels = rng.integers(0, 3, (BATCH, 32, 48)).astype(np.uint8)
    labels[:3, :20] = 255  # so that devices count different numbers of pixels
    mine = slice(parallel.share(BATCH)[0], parallel.share(BATCH)[-1] + 1)
    return Batch(images[mine], labels[mine])


def _train(folder: pathlib.Path, parts: int, per_dispatch: int, total: int = STEPS):
    """A network with dropout that learns from labels and from its first self."""
    encoder = mobilenet.MobileNetV2(4, space.Block(4, 8, 2, 1, 1), BLOCKS, PATHS)
    model = DeepLabV3(encoder, 8, (2,), 3, dropout=0.5)
    variables = init.initialize(model, jax.random.key(0), (1, 32, 48, 3))
    floats = {kind: variables[kind] for kind in ("params", "batch_stats")}
    optimizer = optimizers.sgd(0.05, 20, 0.9, 0.9, 1e-3)
    distill = Distillation(model, {"logits": 0.3, "features": 0.1})
    step = supervised.train_step(
        model, segmentation.loss, optimizer, jax.random.key(1), distill=distill, parts=parts
    )
    whole = loop.Watched("network", "loss", lambda _: 0.05, "train.lr", lambda state: state)
    plan = loop.Plan("network", total, folder / "checkpoint", [whole], 2, 1, per_dispatch)
    state = supervised.fresh_state(floats, optimizer)
    with Metrics(folder, "network", parallel.is_first()) as metrics:
        steps = loop.several(step, floats)
        found = loop.fit(steps, state, _batch, plan, metrics, mesh.layout(BATCH))
    jax.block_until_ready(floats)  # neither the constants nor the first state was given away
    return found


def main() -> None:
    """Of a process apart: trains on some of its devices, and leaves all weights in a file."""
    folder, parts, per_dispatch, total, devices, *others = sys.argv[1:]
    if others:
        meeting.meet(others[0], 2, int(others[1]))
    for count in map(int, devices.split()):
        used = jax.local_devices()[:count]
        own = pathlib.Path(folder) / (devices if others else str(count))
        own.mkdir(exist_ok=True)
        with contextlib.nullcontext() if others else parallel.alone(used):
            found = _train(own, int(parts), int(per_dispatch), int(total))
        if parallel.is_first():
            np.savez(own / "state.npz", *map(np.asarray, jax.tree.leaves(found)))


def _started(devices: int, *arguments: object) -> subprocess.Popen:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path]),
    }
    command = [sys.executable, "-c", "import test_mesh; test_mesh.main()", *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _end(*running: subprocess.Popen) -> None:
    said = [process.communicate(timeout=600)[0] for process in running]
    assert all(process.returncode == 0 for process in running), said


def _differ(folder: pathlib.Path, expected) -> float:
    with np.load(folder / "state.npz") as found:
        leaves = jax.tree.leaves(expected)
        assert len(found.files) == len(leaves)
        pairs = zip(found.values(), map(np.asarray, leaves), strict=True)
        return max(float(np.abs(a - b).max() / (1e-3 + np.abs(b).max())) for a, b in pairs)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What one device computes, step by step, with the batch in some parts."""

    @functools.cache
    def trained(parts: int):
        return _train(tmp_path_factory.mktemp("one"), parts, 1)

    return trained


PARTS = [1, pytest.param(4, marks=pytest.mark.slow)]


@pytest.mark.parametrize("parts", PARTS)
def test_devices_that_share_a_batch_train_like_one(expected, tmp_path, parts):
    counts = "8" if parts == 1 else "2 3 8"
    _end(_started(8, tmp_path, parts, 2, STEPS, counts))
    found = {count: _differ(tmp_path / count, expected(parts)) for count in counts.split()}
    print(found)
    assert max(found.values()) < CLOSE


@pytest.mark.parametrize("parts", PARTS)
def test_two_processes_train_like_one_and_resume_on_other_devices(expected, tmp_path, parts):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    _end(*(_started(2, tmp_path, parts, 1, 2, "1", address, i) for i in range(2)))
    _end(_started(1, tmp_path, parts, 1, STEPS, "1"))
    assert _differ(tmp_path / "1", expected(parts)) < CLOSE


@pytest.mark.slow
def test_parts_differ_from_a_whole_batch(expected):
    """Else the statistics would be those of the whole batch."""
    a, b = (jax.tree.leaves(expected(parts).batch_stats) for parts in (1, 4))
    assert any(np.abs(x - y).max() > 1e-3 for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("batch", "processes", "each", "expected"),
    [
        *((8, 1, 1, 1), (8, 1, 8, 8), (8, 1, 3, 2), (8, 2, 8, 4)),
        *((6, 1, 4, 3), (9, 3, 2, 1), (4, 1, 9, 4)),
    ],
)
def test_as_many_devices_as_can_share_a_batch_equally(batch, processes, each, expected):
    assert mesh.devices_for(batch, processes, each) == expected


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(parallel, "team", lambda: parallel.Team(3, 0, ("a",), True))
    with pytest.raises(InputError, match=r"^train\.batch=8: must be a multiple of .*, 3$"):
        mesh.check_batch("train.batch", 8)
    mesh.check_batch("train.batch", 9)


@pytest.mark.parametrize(
    ("networks", "batch", "devices", "expected"),
    [
        *((1, 8, 8, 8), (3, 8, 1, 1), (3, 8, 2, 2), (2, 8, 2, 1), (4, 8, 8, 2), (3, 8, 3, 1)),
        *((1, 8, 3, 2), (9, 8, 8, 8), (16, 8, 8, 1)),
    ],
)
def test_networks_are_laid_out_over_devices_where_this_is_faster(
    networks, batch, devices, expected
):
    assert mesh.width_for(networks, batch, devices) == expected


def test_networks_side_by_side_have_devices_of_their_own(monkeypatch):
    monkeypatch.setattr(parallel, "team", lambda: parallel.Team(1, 0, tuple("abcd"), True))
    found = []
    monkeypatch.setattr(
        parallel, "one_by_one", lambda groups, units, work: found.append((groups, units))
    )
    mesh.train_all(8, [lambda: None] * 2)
    ((groups, units),) = found
    assert [list(group) for group in groups] == [["a", "b"], ["c", "d"]] and len(units) == 2
