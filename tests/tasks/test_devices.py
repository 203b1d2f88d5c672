"""Evaluation on several devices; XLA makes them up, in processes apart."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.nn import init, mobilenet
from qnas_jax.nn.deeplab import DeepLabV3
from qnas_jax.run import meeting, parallel
from qnas_jax.tasks import segmentation
from qnas_jax.tasks.task import evaluate
from qnas_jax.train import supervised

FULL = (1024, 2048)  # of Cityscapes
ONE_GB = 1e9


class Images:
    """Images of noise, of which each is made when it is read."""

    def __init__(self, count, shape):
        self.count, self.shape = count, shape

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (*self.shape, 3), dtype=np.uint8)
        return image, rng.integers(0, 3, self.shape, dtype=np.uint8)


def _network():
    encoder = mobilenet.MobileNetV2(8, space.Block(8, 8, 2, 1, 1), (), ())
    model = DeepLabV3(encoder, 8, (), 3, dropout=0.0)
    variables = init.initialize(model, jax.random.key(0), (1, 32, 64, 3))
    return model, {kind: variables[kind] for kind in ("params", "batch_stats")}


def evaluated(count: int, batch: int, shape=(24, 40)):
    model, variables = _network()
    task = segmentation.task(("a", "b", "c"))
    predict = supervised.predictor(model, task.predict)
    source = parallel.on_each_device(predict, variables)
    found, samples = evaluate({"float": source}, Images(count, shape), batch, task)
    return found, {name: int(kept.sum()) for name, kept in samples.items()}


def main() -> None:
    """Of a process apart: evaluates on 1, 2 and 3 devices, or together with another process."""
    count, batch, *others = sys.argv[1:]
    if others:
        meeting.meet(others[0], 2, int(others[1]))
        print(json.dumps([evaluated(int(count), int(batch))]))
        return
    found = []
    for devices in (1, 2, 3):
        with parallel.alone(jax.devices()[:devices]):
            found.append(evaluated(int(count), int(batch)))
    print(json.dumps(found))


def _started(*arguments):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=3",
        "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path]),
    }
    command = [sys.executable, "-c", "import test_devices as t; t.main()", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("count", "batch"), [(7, 1), pytest.param(7, 2, marks=SLOW), pytest.param(2, 4, marks=SLOW)]
)
def test_all_devices_and_processes_find_what_one_finds(count, batch):
    """Also where some have nothing to do, and the first images are not those of one process."""
    expected = json.loads(json.dumps(evaluated(count, batch)))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    running = [_started(count, batch), *(_started(count, batch, address, i) for i in range(2))]
    said = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    found = [one for text in said for one in json.loads(text.splitlines()[-1])]
    assert found == [expected] * 5


def test_full_resolution_takes_the_memory_of_the_images_at_once():
    """Not of the data set; the classes of a batch are all that leaves a device."""
    model, variables = _network()
    run = supervised.predictor(model, segmentation.task(("a", "b", "c")).predict)

    def memory(batch):
        images = jax.ShapeDtypeStruct((batch, *FULL, 3), np.uint8)
        found = run.lower(variables, images).compile().memory_analysis()
        return found.temp_size_in_bytes, found.output_size_in_bytes

    (one, classes), (two, _) = memory(1), memory(2)
    assert one < ONE_GB
    assert two < 2.2 * one
    assert classes == FULL[0] * FULL[1]


@SLOW
def test_full_resolution_is_evaluated():
    found, samples = evaluated(3, 1, FULL)
    assert 0 < found["miou_float"] < 100 and samples["float"] > 0
