"""The LUT's engine against one subnet after another in JAX, torch both ways, and ONNX Runtime.

Table I's blocks at full width, on the features of images of 128 x 256 (a CPU) or 512 x 1024
(an accelerator), with random weights and features, which take as long as trained ones. The loops
run a sample of each block's rows; the engine and torch's tree run all of them.

What a user waits for is compilation, calibration on 32 images and scoring on 64. Both rates are
measured on fewer images, and taken times as many.
"""

import argparse
import dataclasses
import itertools
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lut_ort
import machine
from lut_loops import Torch, jax_loop, tree_constants
from qnas_jax import metrics, space
from qnas_jax.bwnas.lut import evaluate, populate, prefix_tree, programs, workload
from qnas_jax.errors import InputError
from qnas_jax.kernels import int8
from qnas_jax.nn import supernet
from qnas_jax.quant import calibrate

OPS = tuple(space.Op(k, e) for k in (3, 5, 7) for e in (3, 6))
DEPTHS = (3, 3, 4, 4, 3, 1)
STRIDES, DILATIONS = (1, 2, 2, 1, 1, 1, 1), (1, 1, 1, 2, 2, 4, 4)
PEERS = ("jax_loop", "torch_loop", "torch_tree", "ort_int8")
CALIBRATED, SCORED = 32, 64  # images that a user waits for
FILES = 8  # of a block, that ONNX Runtime runs
MIXED_DEPTH = 3  # deeper trees of mixed bitwidths take minutes
PAIRS = ((8, 8), (6, 6), (4, 4))
REPEATS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subject."""
    parser.add_argument("--blocks", default="1,2,3,4,5,6", help="which blocks, from 1")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument(
        "--images-per-pass", type=int, default=0, help="images at once in the engine; 0: 1 on a CPU"
    )
    parser.add_argument(
        "--nodes-per-pass", type=int, default=0, help="prefixes at once; 0: as in a run"
    )
    parser.add_argument("--sample", type=int, default=30, help="rows that the loops run")
    parser.add_argument(
        "--compute", choices=("auto", "int8", "float32"), default="auto", help="as lut.compute"
    )
    parser.add_argument("--no-torch", action="store_true")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures block by block; prints a table; returns the figures."""
    on_cpu = jax.default_backend() == "cpu"
    height, width = (128, 256) if on_cpu else (512, 1024)
    per_pass = arguments.images_per_pass or (1 if on_cpu else arguments.images)
    blocks = space.mobilenet_v2_blocks(1.0, STRIDES, DILATIONS)
    shape = [height // 2, width // 2]  # after the stem
    numbers = asked(arguments.blocks)
    peak, stream = machine.matmul_flops(), machine.stream_bytes()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {height} x {width}, ", end="")
    print(
        f"{arguments.images} images; peak {peak / 1e9:.0f} GFLOP/s, stream {stream / 1e9:.1f} GB/s"
    )
    print(
        "block   rows  engine s   rows/s", *(f"{peer:>10}" for peer in PEERS), " of peak  of stream"
    )
    cases = {}
    for number, group in enumerate(blocks[1:], 1):
        block = dataclasses.replace(group, depth=DEPTHS[number - 1])
        if number in numbers:
            cases[number] = _Case(block, tuple(shape), arguments, per_pass)
        shape = [-(-s // block.stride) for s in shape]
    begin = time.perf_counter()  # as in a run: all blocks' programs together
    programs.compile_all(itertools.chain(*(case.programs() for case in cases.values())))
    compile_s, found = time.perf_counter() - begin, []
    for number, case in cases.items():
        one = case.measure()
        found.append(one)
        _print_line(number, one, peak, stream)
    names = {name for one in found for name in one} - {"max_rel_diff"}
    total: dict[str, float] = {name: sum(one.get(name, 0.0) for one in found) for name in names}
    total["compile_s"] = compile_s + total["first_s"]
    figures = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "image": [height, width],
        "images": arguments.images,
        "kernel": _kernel(arguments.compute) or "float32",
        "rows": total["rows"],
        "rows_per_s": total["rows"] / total["engine_s"],
        "engine_s": total["engine_s"],
        "compile_s": total["compile_s"],
        "calibrate_s": total["calibrate_s"],
        "compilations": evaluate.compilations(),
        "peak_share": 2 * total["macs"] / total["engine_s"] / peak,
        "stream_share": total["bytes"] / total["engine_s"] / stream,
        "three_bitwidths_ratio": _ratio(total, "three_s", "one_s"),
        "per_layer_ratio": _ratio(total, "per_layer_s", "per_layer_predicted_s"),
        "max_rel_diff": max(one["max_rel_diff"] for one in found),
        "peak_memory_mb": machine.peak_memory_mb(),
        "matmul_flops": peak,
        "stream_bytes_per_s": stream,
        "blocks": found,
    }
    for name in PEERS:
        figures[f"ratio_{name}"] = _ratio(total, f"{name}_s", "engine_s")
    figures["ratio_ort_int8_with_sessions"] = _ratio(total, "ort_int8_with_sessions_s", "engine_s")
    figures |= _end_to_end(total, arguments.images)
    for name in ("rows_per_s", "ratio_jax_loop", "ratio_torch_loop", "ratio_torch_tree",
                 "peak_share", "stream_share", "max_rel_diff", "three_bitwidths_ratio",
                 "per_layer_ratio", "compilations", "compile_s", "calibrate_s",
                 "peak_memory_mb", "ratio_ort_int8", "ratio_ort_int8_with_sessions",
                 "end_to_end_s", "ratio_end_to_end_torch"):  # fmt: skip
        if figures.get(name) is not None:
            print(f"{name:22s} {figures[name]:.4g}")
    return figures


def _print_line(number, one, peak, stream) -> None:
    share = 2 * one["macs"] / one["engine_s"] / peak
    moved = one["bytes"] / one["engine_s"] / stream
    rates = [_ratio(one, f"{peer}_s", "engine_s") for peer in PEERS]
    ratios = " ".join(f"{r:9.1f}x" if r else "         -" for r in rates)
    print(
        f"{number:5d} {one['rows']:6d} {one['engine_s']:9.2f} "
        f"{one['rows'] / one['engine_s']:8.1f} {ratios} {share:8.0%} {moved:10.0%}",
        flush=True,
    )


def asked(blocks: str) -> set[int]:
    """The numbers of blocks in an option.

    Raises:
      InputError: It has others than Table I has, or none.
    """
    known = [str(number) for number in range(1, len(DEPTHS) + 1)]
    if not set(blocks.split(",")) <= set(known):
        raise InputError(f"--blocks={blocks}: must be numbers from 1 to {known[-1]}, as in 1,2")
    return set(map(int, blocks.split(",")))


def _ratio(one: dict[str, Any], name: str, to: str) -> float | None:
    return one[name] / one[to] if name in one else None


def _end_to_end(total: dict[str, Any], images: int) -> dict[str, float | None]:
    """Seconds from nothing to scores, and torch's ratio to them, from those of fewer images."""
    calibrated, scored = CALIBRATED / images, SCORED / images
    own = total["compile_s"] + calibrated * total["calibrate_s"] + scored * total["engine_s"]
    found: dict[str, float | None] = {"end_to_end_s": own, "ratio_end_to_end_torch": None}
    if "torch_calibrate_s" in total:
        peer = calibrated * total["torch_calibrate_s"] + scored * total["torch_loop_s"]
        found["ratio_end_to_end_torch"] = peer / own
    return found


def _best(function) -> float:
    """The fewest seconds of a few runs; most take a second or less."""
    return min(machine.once(function) for _ in range(REPEATS))


def _kernel(compute: str) -> int8.Kernel | None:
    """The kernel of int8 convolutions; None for float32."""
    return int8.find_kernel().chosen(compute)


class _Case:
    """One block: its weights, features and calibration, and the measurements on them."""

    def __init__(self, block, shape, arguments, per_pass):
        rng = np.random.default_rng(0)
        self.block, self.arguments = block, arguments
        self.kernel: int8.Kernel | None = _kernel(arguments.compute)
        self.compute = "int8" if self.kernel else "float32"
        self.params = supernet.init_block(jax.random.key(0), block, OPS)
        out = [-(-s // block.stride) for s in shape]
        images = arguments.images
        place = jax.devices()[0]  # as in a run, whose features are placed
        self.params = jax.device_put(self.params, place)
        self.x = jax.device_put(_normal(rng, (images, *shape, block.in_channels)), place)
        self.target = jax.device_put(_normal(rng, (images, *out, block.channels)), place)
        self.variance = jnp.asarray(np.asarray(metrics.channel_variance(self.target)))
        self.chunks = [slice(i, i + per_pass) for i in range(0, images, per_pass)]
        self.shape = shape
        work = workload.work(block, OPS, [[PAIRS[0]]] * block.depth, shape)
        given = arguments.nodes_per_pass
        self.nodes = given or populate.nodes_per_pass(
            work.node_bytes(self.compute) * per_pass, place
        )
        self.nodes_to_score = given or populate.nodes_to_score(work, per_pass, self.kernel, place)
        self.built = self.build([[PAIRS[0]]] * block.depth)

    def build(self, bits):
        find_range = calibrate.min_max
        return prefix_tree.build(self.params, self.block, OPS, bits, find_range, kernel=self.kernel)

    def noise(self, built, found):
        nodes = self.nodes_to_score
        parts = [
            prefix_tree.noise(built, found, self.x[c], self.target[c], self.variance, nodes)
            for c in self.chunks
        ]
        return sum(parts) / (self.target.size // self.target.shape[-1])

    def programs(self):
        built, first = self.built, self.chunks[0]
        x, part, target = (
            jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=one.sharding)
            for one in (self.x, self.x[first], self.target[first])
        )
        calibration = programs.of_calibration(built, x, self.nodes)
        noise = programs.of_noise(built, part, target, self.nodes_to_score)
        return itertools.chain(calibration, noise)

    def measure(self) -> dict[str, Any]:
        depth, rows = self.block.depth, len(OPS) ** self.block.depth
        built, begin = self.built, time.perf_counter()
        found = prefix_tree.calibrate(built, self.x, self.nodes)
        scores = self.noise(built, found)
        first = time.perf_counter() - begin
        calibrate_s = machine.once(lambda: prefix_tree.calibrate(built, self.x, self.nodes))
        engine_s = _best(lambda: self.noise(built, found))
        work = workload.work(self.block, OPS, [[PAIRS[0]]] * depth, self.shape)
        result = {
            "rows": rows,
            "engine_s": engine_s,
            "calibrate_s": calibrate_s,
            "first_s": max(first - calibrate_s - engine_s, 0.0),  # small programs compile in it
            "macs": work.macs * self.arguments.images,
            "bytes": work.moved_bytes(self.compute) * self.arguments.images,
        }
        if depth <= MIXED_DEPTH:
            result |= self._more_bitwidths(engine_s, work)
        return {**result, **self._peers(built, found, scores)}

    def _more_bitwidths(self, engine_s, work):
        """Three bitwidths one after another, and two to choose from at every layer but one."""
        three = [self.build([[pair]] * self.block.depth) for pair in PAIRS]
        founds = [prefix_tree.calibrate(one, self.x, self.nodes) for one in three]
        three_s = _best(lambda: [self.noise(*both) for both in zip(three, founds, strict=True)])
        layers = [PAIRS[:1], *[PAIRS[:2]] * (self.block.depth - 1)]
        mixed = self.build(layers)
        found = prefix_tree.calibrate(mixed, self.x, self.nodes)
        per_layer_s = _best(lambda: self.noise(mixed, found))
        predicted = engine_s * workload.work(self.block, OPS, layers, self.shape).macs / work.macs
        return {
            "one_s": engine_s,
            "three_s": three_s,
            "per_layer_s": per_layer_s,
            "per_layer_predicted_s": predicted,
        }

    def _peers(self, built, found, scores):
        by_op = tree_constants(built, found)
        rows = len(scores)
        rng = np.random.default_rng(1)
        sample = rng.choice(rows, min(self.arguments.sample, rows), replace=False)
        paths = np.stack(np.unravel_index(sample, (len(OPS),) * self.block.depth), 1).tolist()
        bits = PAIRS[0]
        loop = jax_loop(self.params, self.block, by_op, found.input_range, OPS, bits)
        data = (self.x, self.target, self.variance)
        for path in paths:  # compiles every op
            loop(path, *data)
        begin = time.perf_counter()
        found_by = {"jax": [loop(path, *data) for path in paths]}
        result = {"jax_loop_s": (time.perf_counter() - begin) * rows / len(sample)}
        result |= self._onnxruntime(paths[:FILES], rows)
        if not self.arguments.no_torch:
            peer = Torch(self.params, self.block, by_op, found.input_range, OPS, bits)
            tensors = (peer.tensor(self.x), peer.tensor(self.target), _torch_vector(self.variance))
            peer.loop(paths[0], *tensors)
            begin = time.perf_counter()
            found_by["loop"] = [peer.loop(path, *tensors) for path in paths]
            result["torch_loop_s"] = (time.perf_counter() - begin) * rows / len(sample)
            begin = time.perf_counter()
            for path in paths:
                peer.calibrate(path, tensors[0])
            result["torch_calibrate_s"] = (time.perf_counter() - begin) * rows / len(sample)
            begin = time.perf_counter()
            found_by["tree"] = np.array(peer.tree(*tensors))[sample].tolist()
            result["torch_tree_s"] = time.perf_counter() - begin
        worst = max(np.abs(np.array(v) / scores[sample] - 1).max() for v in found_by.values())
        return {**result, "max_rel_diff": float(worst)}

    def _onnxruntime(self, paths, rows) -> dict[str, float]:
        """Seconds for all rows and images: without making sessions, and with one for each row."""
        paths = [tuple(OPS[op] for op in path) for path in paths]
        run, load = lut_ort.seconds(
            self.block, paths, tuple(self.shape), len(os.sched_getaffinity(0))
        )
        runs = rows * self.arguments.images * run
        return {"ort_int8_s": runs, "ort_int8_with_sessions_s": runs + rows * load}


def _normal(rng, shape):
    return rng.normal(size=shape).astype(np.float32)


def _torch_vector(x):
    import torch  # pyright: ignore[reportMissingImports]  # an extra: bench

    return torch.from_numpy(np.array(x))
