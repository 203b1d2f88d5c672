"""A training step of the supernet against the same step in torch, by block and in total.

Table I's blocks at full width on the features of images of 128 x 256 (a CPU) or 512 x 1024
(an accelerator), float32: forward, NSR, gradients, and SGD with momentum and decay. The features
are random; the teacher is left out.

Rates are images/s per op trained: images * ops trained in the step / seconds. A fair step trains
each of the six ops of each layer once, a uniform step one op of each layer. Torch trains the same
paths one after another, so both have trained the same ops on the same images. (Torch runs on the
CPU, so an accelerator has no peer.)
"""

import argparse
import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import machine
from distill_torch import Torch
from lut import DEPTHS, DILATIONS, OPS, STRIDES
from qnas_jax import space
from qnas_jax.bwnas import balance, distill
from qnas_jax.data.batching import Augmentation, prefetch, training_batch
from qnas_jax.data.streets import Streets
from qnas_jax.nn import init, mobilenet
from qnas_jax.nn.deeplab import DeepLabV3
from qnas_jax.train import supervised
from qnas_jax.train.optimizers import sgd

LR, STEPS, POWER, MOMENTUM, WEIGHT_DECAY = 0.005, 13_334, 0.9, 0.9, 1e-4
REPEATS = 3
VALUE_BYTES = 4
INPUT_STEPS, INPUT_THREADS = 10, 2
DEVICES = (2, 3, 4, 6, 8, 12)
PARTS = (1, 4, 8)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subject."""
    parser.add_argument("--blocks", default="1,2,3,4,5,6", help="which blocks, from 1")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--sampling", choices=tuple(distill.SAMPLING), default="fair")
    parser.add_argument("--no-torch", action="store_true")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures the whole supernet, then block by block; prints a table; returns the figures."""
    on_cpu = jax.default_backend() == "cpu"
    size = (128, 256) if on_cpu else (512, 1024)
    blocks, shapes = _table_one(size)
    maps = _maps(blocks, shapes, arguments.batch)
    numbers = sorted({int(n) for n in arguments.blocks.split(",")})
    peak = machine.matmul_flops()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {size[0]} x {size[1]}, ", end="")
    print(f"batch {arguments.batch}, {arguments.sampling}; peak {peak / 1e9:.0f} GFLOP/s")
    print("rates: images/s per op trained = images * ops trained in a step / seconds")
    whole: dict[str, Any] = {}
    if len(numbers) == len(blocks):  # first: the peak of memory must not be torch's
        case = _Case(blocks, shapes, maps, arguments)
        whole = {**case.measure(peak), **case.input_wait(size)}
        whole["peak_memory_mb"] = machine.peak_memory_mb()
    print("block  step s  compile s     rate  torch's  ratio  of peak  loss diff  gradient diff")
    found = []
    for number in numbers:
        i = number - 1
        case = _Case(blocks[i : i + 1], shapes[i : i + 2], maps[i : i + 2], arguments)
        found.append({"block": number, **case.measure(peak, on_cpu and not arguments.no_torch)})
        _print_row(found[-1], str(number))
    figures = _totals(found, whole, peak)
    if len(found) > 1:
        _print_row(figures, "all")
    if len(found) == len(blocks):
        seconds = tuple(one["step_s"] for one in found)
        teacher = _teacher_seconds(size, arguments.batch)
        figures["teacher_s"] = teacher[-1]
        for parts in PARTS:
            figures[f"imbalance_{parts}_parts"] = _imbalance(seconds, teacher, parts)
    figures |= {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "image": list(size),
        "batch": arguments.batch,
        "sampling": arguments.sampling,
        "matmul_flops": peak,
        "blocks": found,
    }
    for name, value in figures.items():
        if isinstance(value, float):
            print(f"{name:24s} {value:.4g}")
        elif name.startswith("imbalance"):
            print(f"{name:24s} {value}")
    return figures


def _table_one(size):
    """The six blocks, and height and width at all their boundaries."""
    groups = space.mobilenet_v2_blocks(1.0, STRIDES, DILATIONS)[1:]
    blocks = tuple(dataclasses.replace(g, depth=d) for g, d in zip(groups, DEPTHS, strict=True))
    shapes = [(size[0] // 2, size[1] // 2)]  # after the stem
    for block in blocks:
        shapes.append((-(-shapes[-1][0] // block.stride), -(-shapes[-1][1] // block.stride)))
    return blocks, shapes


def _maps(blocks, shapes, batch):
    """Random features at all boundaries, [n, h, w, c]."""
    rng = np.random.default_rng(0)
    channels = [blocks[0].in_channels, *(block.channels for block in blocks)]
    sizes = [(batch, *shape, c) for shape, c in zip(shapes, channels, strict=True)]
    return tuple(jnp.asarray(rng.standard_normal(size, np.float32)) for size in sizes)


def _drawn_norms(params):
    """The parameters, with random scales and biases of the batch norms.

    With biases of zero, the next norm cancels the expansion's scale after ReLU6; the gradient
    of that scale is then rounding only, which cannot be compared.
    """
    rng = np.random.default_rng(2)

    def draw(path, leaf):
        noise = jnp.asarray(rng.normal(0.0, 0.2, leaf.shape), jnp.float32)
        return leaf if path[-1].key == "kernel" else leaf + noise

    return jax.tree_util.tree_map_with_path(draw, params)


def _totals(found, whole, peak):
    """The figures in total: of the whole supernet's step if it was run, else sums."""
    summed = (
        "images_ops",
        "macs",
        "forward_bytes",
        "gradient_bytes",
        "step_s",
        "compile_s",
        "torch_step_s",
    )
    total = {name: sum(one[name] for one in found) for name in summed if name in found[0]}
    total = {**total, "step_s_by_block": total["step_s"], **whole}
    for name in ("max_rel_diff_loss", "max_rel_diff_gradient", "median_rel_diff_gradient"):
        if name in found[0]:
            total[name] = max(one[name] for one in found)
    return _rated(total, peak)


def _rated(one: dict[str, Any], peak: float) -> dict[str, Any]:
    """With the rates that follow from the seconds."""
    one["images_per_s_op"] = one["images_ops"] / one["step_s"]
    # A training step is the forward pass and two more of its size.
    one["peak_share"] = 3 * 2 * one["macs"] / one["step_s"] / peak
    if "torch_step_s" in one:
        one["torch_images_per_s_op"] = one["images_ops"] / one["torch_step_s"]
        one["ratio_torch"] = one["torch_step_s"] / one["step_s"]
    return one


def _print_row(one, name):
    print(f"{name:>5} {one['step_s']:7.3f} {one['compile_s']:10.1f} ", end="")
    print(f"{one['images_per_s_op']:8.1f} ", end="")
    if "ratio_torch" in one:
        print(f"{one['torch_images_per_s_op']:8.1f} {one['ratio_torch']:5.2f}x ", end="")
    else:
        print("       -      - ", end="")
    print(f"{one['peak_share']:8.0%}", end="")
    if "max_rel_diff_loss" in one:
        print(f" {one['max_rel_diff_loss']:10.1e} {one['max_rel_diff_gradient']:14.1e}", end="")
    print(flush=True)


def _teacher_seconds(size, batch) -> tuple[float, ...]:
    """The teacher's forward pass to the end of each block."""
    first, *groups = space.mobilenet_v2_blocks(1.0, STRIDES, DILATIONS)
    encoder = mobilenet.MobileNetV2(
        first.in_channels, first, tuple(groups), mobilenet.teacher_paths(tuple(groups))
    )
    images = np.zeros((batch, *size, 3), np.uint8)
    teacher = DeepLabV3(encoder, 256, (12, 24, 36), 19)
    variables = init.initialize(teacher, jax.random.key(0), (1, *size, 3))
    features = supervised.features(teacher)
    found = []
    for i in range(len(groups)):
        run = jax.jit(lambda images, i=i: features(variables, images)[i + 1])
        jax.block_until_ready(run(images))
        found.append(min(machine.once(lambda run=run: run(images)) for _ in range(REPEATS)))
    return tuple(found)


def _imbalance(seconds, teacher, parts) -> dict[str, float]:
    """By the number of devices: seconds of the slowest over the mean of all, as a run lays out."""
    part = balance.Costs(*(tuple(s / parts for s in times) for times in (seconds, teacher)))
    return {
        str(devices): round(
            balance.imbalance(part, balance.lay_out(part, parts, devices), devices), 3
        )
        for devices in DEVICES
    }


class _Case:
    """Consecutive blocks, their features, and the step that trains them."""

    def __init__(self, blocks, shapes, maps, arguments):
        self.blocks, self.shapes, self.maps = blocks, shapes, maps
        self.sampling, self.batch = arguments.sampling, arguments.batch
        # Uniform steps differ in what their paths cost, so several are timed.
        self.numbers = range(1) if self.sampling == "fair" else range(len(OPS))
        searched = space.Space(blocks, OPS)
        optimizer = sgd(LR, STEPS, POWER, MOMENTUM, WEIGHT_DECAY)
        optimizers = (optimizer,) * len(blocks)
        self.key = jax.random.key(1)
        state = distill.fresh_state(searched, optimizers, jax.random.key(0))
        self.state = tuple(block._replace(params=_drawn_norms(block.params)) for block in state)
        sampling = distill.SAMPLING[self.sampling]
        # The teacher is left out.
        recipe = distill.Recipe(lambda _, maps: maps, searched, optimizers, sampling, self.key)
        self.step = functools.partial(distill.train_step(recipe), None)

    def measure(self, peak: float, with_torch: bool = False) -> dict[str, Any]:
        """Seconds of a step, and of torch's step on the same paths, timed in turns."""
        begin = time.perf_counter()
        jax.block_until_ready(self._one_step(0))
        first = time.perf_counter() - begin
        paths = [self._paths(block, place) for place, block in enumerate(self.blocks)]
        result = self._work(paths)
        steps = [self._train]
        if with_torch:
            (block,), (x, target) = self.blocks, self.maps
            peer = Torch(self.state[0].params, block, OPS, LR, MOMENTUM, WEIGHT_DECAY)
            x, target = peer.tensor(x), peer.tensor(target)
            result |= self._differences(peer, paths[0], x, target)
            steps.append(lambda: [peer.train(of_step, x, target) for of_step in paths[0]])
        times = [[machine.once(step) for step in steps] for _ in range(REPEATS)]
        best = [min(t) / len(self.numbers) for t in zip(*times, strict=True)]
        result |= dict(zip(("step_s", "torch_step_s"), best, strict=False))
        result["compile_s"] = max(first - result["step_s"], 0.0)
        return _rated(result, peak)

    def _one_step(self, number):
        return self.step(self.state, self.maps, None, jnp.int32(number))

    def _train(self):
        return [self._one_step(number) for number in self.numbers]

    def _paths(self, block, place) -> list[list[list[int]]]:
        """The paths that every step trains, drawn as `distill.train_step` draws them."""
        found = []
        for number in self.numbers:
            key = jax.random.fold_in(jax.random.fold_in(self.key, number), place)
            if self.sampling == "uniform":
                found.append([jax.random.randint(key, (block.depth,), 0, len(OPS)).tolist()])
                continue
            paths = [[op] for op in range(len(OPS))]
            for one in reversed(jax.random.split(key, block.depth - 1)):
                order = jax.random.permutation(one, len(OPS)).tolist()
                paths = [[order[path[0]], *path] for path in paths]
            found.append(paths)
        return found

    def _work(self, paths) -> dict[str, Any]:
        """The work of a step, the mean of the steps.

        Images times ops trained; MACs and bytes of the forward pass, every activation written and
        read once; bytes of the gradients, which replicas exchange.
        """
        ops = macs = values = 0
        for place, block in enumerate(self.blocks):
            for layer, op in ((n, o) for s in paths[place] for p in s for n, o in enumerate(p)):
                channels, stride = block.layer_shape(layer)
                shape = (*self.shapes[place + (layer > 0)], channels)
                how = (block.channels, stride, block.layer_dilation(layer))
                convs = space.mbconv_convs(OPS[op], "", shape, *how)
                macs += sum(conv.macs for conv in convs)
                values += sum(conv.out_channels * conv.out_pixels for conv in convs)
                ops += 1
        rate = self.batch / len(self.numbers)
        leaves = jax.tree.leaves([block.params for block in self.state])
        return {
            "images_ops": ops * rate,
            "macs": macs * rate,
            "forward_bytes": 2 * VALUE_BYTES * values * rate,
            "gradient_bytes": VALUE_BYTES * sum(leaf.size for leaf in leaves),
        }

    def _differences(self, peer, paths, x, target) -> dict[str, float]:
        """How far loss and gradients of the first step are from torch's."""
        (new,), values = self._one_step(0)
        # After one step the momentum is the gradient and the decay of the kernels.
        gradients = jax.tree_util.tree_map_with_path(
            lambda at, g, p: g - WEIGHT_DECAY * p if at[-1].key == "kernel" else g,
            optax.tree_utils.tree_get(new.optimizer, "trace"),
            self.state[0].params,
        )
        loss, worst, median = peer.compare(paths[0], x, target, gradients)
        return {
            "max_rel_diff_loss": abs(float(values["nsr_block1"]) / loss - 1),
            "max_rel_diff_gradient": worst,
            "median_rel_diff_gradient": median,
        }

    def input_wait(self, size) -> dict[str, float]:
        """The share of a step's time that it waits for images, which threads render.

        Each image is rendered anew, as in a run's first epoch. The wait for the first batch is
        not counted. Without the teacher, steps are shorter than a run's.
        """
        data = Streets(0, "train", size[0], size[1], (INPUT_STEPS + 1) * self.batch)
        how = Augmentation(size, (0.5, 2.0))
        batches = prefetch(
            lambda i: training_batch(data, 0, i, self.batch, how), 0, INPUT_STEPS + 1, INPUT_THREADS
        )
        next(batches)
        waited, begin = 0.0, time.perf_counter()
        for number in range(INPUT_STEPS):
            waited += machine.once(lambda: next(batches))
            jax.block_until_ready(self._one_step(number))
        return {"input_wait_share": waited / (time.perf_counter() - begin)}
