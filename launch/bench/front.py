"""How long fronts of one to three costs take, and how many subnets are on them.

Tables of the quickstart's and of Table I's size with made-up NSRs: lower with every kernel,
expansion and bit, and `--noise` apart at random. The lower the noise, the larger the
fronts: paths then differ little, so that few dominate others. Latency and energy are those of
a plain roofline.
"""

import argparse
import dataclasses
import time
from typing import Any, NamedTuple

import numpy as np

from qnas_jax import hardware, space
from qnas_jax.bwnas.lut import table
from qnas_jax.errors import InputError
from qnas_jax.search import pareto

COSTS = (
    ("size_bytes",),
    ("latency_ms",),
    ("size_bytes", "latency_ms"),
    ("size_bytes", "latency_ms", "energy_mj"),
)
INT8, MIXED = ((8, 8),), ((4, 4), (6, 6), (8, 8))
GAIN = (0.25, 0.12)  # exponents of expansion and kernel in what an op is worth
LOSS = (60, 90)  # of 2 ** (-2 bits), weights and activations


class Case(NamedTuple):
    """A table's size."""

    name: str
    width: float
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    depths: tuple[int, ...]
    bits: tuple[space.Bits, ...]
    shape: tuple[int, int]  # of the features before block 1


QUICKSTART = ((1, 2, 2, 2, 1, 1, 1), (1, 1, 1, 1, 1, 2, 2), (2, 2, 3, 3, 2, 1))
TABLE_I = ((1, 2, 2, 1, 1, 1, 1), (1, 1, 1, 2, 2, 4, 4), (3, 3, 4, 4, 3, 1))
CASES = (
    Case("quickstart, INT8", 0.5, *QUICKSTART, INT8, (48, 96)),
    Case("Table I, INT8", 1.0, *TABLE_I, INT8, (256, 512)),
    Case("Table I, 4/6/8 per block", 1.0, *TABLE_I, MIXED, (256, 512)),
)


class Roofline(NamedTuple):
    """A made-up device."""

    macs_per_ms: float = 2e7  # at 8 bits
    depthwise: float = 0.2  # of that
    bytes_per_ms: float = 4e6
    mj_per_mac: float = 5e-10
    mj_per_byte: float = 2e-8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subject."""
    parser.add_argument("--noise", type=float, default=0.05, help="standard deviation of ln NSR")
    parser.add_argument("--epsilon", type=float, default=0.0, help="0: exact")
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Folds every table for every set of costs; prints a table; returns the figures."""
    print("table                      rows  costs                              points  seconds")
    found = []
    for case in CASES:
        rows = made_up(case, arguments.noise, arguments.seed)
        for costs in COSTS:
            tables = [rows.objectives(block, costs) for block in range(rows.blocks)]
            begin = time.perf_counter()
            try:
                points = len(pareto.pareto_front(tables, arguments.epsilon))
            except InputError as error:
                print(error)
                continue
            seconds = time.perf_counter() - begin
            names = ", ".join(costs)
            print(f"{case.name:25s} {len(rows.nsr):5d}  {names:33s} {points:7d} {seconds:8.3f}")
            one = {"table": case.name, "rows": len(rows.nsr), "costs": costs}
            found.append({**one, "points": points, "seconds": round(seconds, 4)})
    return {"noise": arguments.noise, "epsilon": arguments.epsilon, "fronts": found}


def made_up(case: Case, noise: float, seed: int) -> table.Table:
    """Returns a table of that size, see above."""
    groups = space.mobilenet_v2_blocks(case.width, case.strides, case.dilations)[1:]
    blocks = tuple(
        dataclasses.replace(block, depth=depth)
        for block, depth in zip(groups, case.depths, strict=True)
    )
    ops = tuple(space.Op(k, e) for k in (3, 5, 7) for e in (3, 6))
    searched = space.Space(blocks, ops)
    parts = table.parts_of(searched, case.bits, per_layer=False)
    rows = table.build(np.zeros(sum(part.rows for part in parts)), searched, parts)
    rows = dataclasses.replace(rows, nsr=_nsr(rows, noise, seed))
    models = {"latency_ms": _latency_ms, "energy_mj": _energy_mj}
    made_up = hardware.Target("made up", costs=hardware.of_model(Roofline(), models))
    layers = hardware.layers(hardware.places(blocks, case.shape), ops)
    return table.with_costs(rows, hardware.cost_matrix(made_up, layers, rows.bits))


def _nsr(rows: table.Table, noise: float, seed: int) -> np.ndarray:
    """Sums over the layers of what each op and its bitwidths add, times random factors."""
    rng = np.random.default_rng(seed)
    used = rows.path >= 0
    worth = np.array([op.expansion ** GAIN[0] * op.kernel ** GAIN[1] for op in rows.ops])
    places = (rows.blocks, rows.path.shape[1], len(rows.ops))
    worth = worth * rng.uniform(0.97, 1.03, places)
    layers = np.arange(rows.path.shape[1])
    lost = LOSS[0] * 0.25 ** rows.w_bits.astype(float) + LOSS[1] * 0.25 ** rows.a_bits.astype(float)
    added = 1.7 / worth[rows.block[:, None], layers, rows.path] + lost
    scale = rng.uniform(0.2, 0.5, rows.blocks)[rows.block] / used.sum(1)
    nsr = scale * np.where(used, added, 0).sum(1)
    return (nsr * np.exp(noise * rng.standard_normal(len(nsr)))).astype(np.float32)


def _moved_bytes(conv: space.Conv, w_bits, a_bits) -> np.ndarray:
    pixels = conv.in_height * conv.in_width * conv.in_channels + conv.out_pixels * conv.out_channels
    return (conv.weights * w_bits + pixels * a_bits) / 8


def _latency_ms(device: Roofline, conv: space.Conv, w_bits, a_bits) -> np.ndarray:
    rate = device.macs_per_ms * (device.depthwise if conv.groups > 1 else 1.0)
    moved = _moved_bytes(conv, w_bits, a_bits) / device.bytes_per_ms
    return np.maximum(conv.macs * w_bits * a_bits / 64 / rate, moved)


def _energy_mj(device: Roofline, conv: space.Conv, w_bits, a_bits) -> np.ndarray:
    moved = _moved_bytes(conv, w_bits, a_bits) * device.mj_per_byte
    return conv.macs * w_bits * a_bits / 64 * device.mj_per_mac + moved
