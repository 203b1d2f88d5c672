"""BitFusion: a systolic array of multipliers that split into narrower ones.

A unit multiplies two 8-bit numbers in a cycle, or several pairs of narrower ones. The number of
pairs is whole, so 6 bits compute no faster than 8, and 3 no faster than 4: they only move fewer
bytes. Rows take input channels and taps, columns take output channels. In a depthwise convolution a
column takes one channel, with its taps along the rows. With one channel at a time and all other
columns idle, MobileNetV1 would take 1.8 times the published latency.

References:
  Sharma et al., 2018, https://arxiv.org/abs/1712.01507, and the authors' simulator,
  https://github.com/hsharma35/bitfusion; these formulas follow its cycles and energies.
"""

import itertools
from typing import NamedTuple

import numpy as np

from qnas_jax.errors import InputError
from qnas_jax.hardware import counts
from qnas_jax.hardware.counts import Values
from qnas_jax.hardware.devices import BitFusion
from qnas_jax.space import Conv

UNIT_BITS = 8
LEAST_BITS = 2  # narrower numbers take as much of a unit
SUM_BITS = 32  # of an output, as it leaves the array
LOOPS = "pic"  # over tiles of output pixels, of input channels, of output channels
_NEVER = np.iinfo(np.int64).max


class Schedule(NamedTuple):
    """How a convolution runs under its fastest tiling, for one image; int64 over bitwidths.

    Attributes:
      cycles: All cycles.
      compute_cycles: Cycles in which the array computes.
      weight_bits: Bits of weights loaded from DRAM.
      input_bits: Bits of activations loaded from DRAM.
      sum_bits: Bits of sums loaded from DRAM; as many are stored.
      passes: How often a sum is continued, because input channels come in tiles.
    """

    cycles: Values
    compute_cycles: Values
    weight_bits: Values
    input_bits: Values
    sum_bits: Values
    passes: Values


class Energy(NamedTuple):
    """Where the energy of a convolution goes, for one image; float64 over bitwidths."""

    core_mj: Values
    sram_mj: Values
    dram_mj: Values
    static_mj: Values


class _Tiles(NamedTuple):
    """All tilings that are tried, int64[tilings] each."""

    height: np.ndarray  # of a tile's outputs
    width: np.ndarray
    in_channels: np.ndarray
    out_channels: np.ndarray
    number: dict[str, np.ndarray]  # of tiles along each of `LOOPS`


def latency_ms(device: BitFusion, conv: Conv, w_bits, a_bits) -> Values:
    """Milliseconds of a convolution for one image.

    Args:
      device: The accelerator.
      conv: The convolution, dense or depthwise.
      w_bits: Bitwidths of weights, an int or an array.
      a_bits: Bitwidths of activations, an int or an array; both broadcast.
    """
    return schedule(device, conv, w_bits, a_bits).cycles / device.clock_hz * 1e3


def energy_mj(device: BitFusion, conv: Conv, w_bits, a_bits) -> Values:
    """Millijoules of a convolution for one image; arguments as for `latency_ms`."""
    return np.sum(energy(device, conv, w_bits, a_bits), axis=0)


def energy(device: BitFusion, conv: Conv, w_bits, a_bits) -> Energy:
    """Where the energy goes; arguments as for `latency_ms`.

    Buffers are read for every product; sums stay in the array over the input channels of a tile.
    """
    w_bits, a_bits = counts.checked_bits(w_bits, a_bits)
    best = schedule(device, conv, w_bits, a_bits)
    sum_bits = conv.out_pixels * conv.out_channels * SUM_BITS * best.passes + best.sum_bits
    sram_pj = (
        conv.macs * (w_bits * device.weights.read_pj + a_bits * device.inputs.read_pj)
        + best.weight_bits * device.weights.write_pj
        + best.input_bits * device.inputs.write_pj
        + sum_bits * (device.outputs.read_pj + device.outputs.write_pj)
    )
    return Energy(
        core_mj=best.compute_cycles * device.core_pj * 1e-9,
        sram_mj=sram_pj * 1e-9,
        dram_mj=_moved_bits(best) * device.dram_pj * 1e-9,
        static_mj=best.cycles / device.clock_hz * device.static_w * 1e3,
    )


def pairs(w_bits, a_bits) -> Values:
    """Pairs of numbers that a unit multiplies at once."""
    w_bits, a_bits = counts.checked_bits(w_bits, a_bits)
    return (UNIT_BITS // np.maximum(w_bits, LEAST_BITS)) * (
        UNIT_BITS // np.maximum(a_bits, LEAST_BITS)
    )


def schedule(device: BitFusion, conv: Conv, w_bits, a_bits) -> Schedule:
    """The fastest of all tilings and orders of loops; among equals, the one that moves least.

    Sides of tiles are powers of two, tiles of outputs are square, and half of each buffer is filled
    while the other half is in use. Arguments as for `latency_ms`.

    Raises:
      InputError: The smallest tile does not fit the buffers.
    """
    w_bits, a_bits = (bits[..., None] for bits in counts.checked_bits(w_bits, a_bits))
    tiles = _tiles(conv)
    tile_bits, compute = _tile_costs(device, conv, tiles, w_bits, a_bits)
    room = {
        "weights": device.weights.size_bytes * 8 // 2,
        "inputs": device.inputs.size_bytes * 8 // 2,
        "outputs": device.outputs.size_bytes * 8 // 2,
    }
    fits = np.bool_(True)
    for name, bits in tile_bits.items():
        fits = fits & (bits <= room[name])
    if not fits.any(-1).all():
        raise InputError(f"{conv.name}: no tile of it fits the buffers of {device.source}")
    orders = []
    for order in itertools.permutations(LOOPS):
        tried = _ordered(device, conv, tiles, order, tile_bits, room, compute)
        tried = tried._replace(cycles=np.where(fits, tried.cycles, _NEVER))
        orders.append(np.stack(np.broadcast_arrays(*tried)))
    found = Schedule(*np.concatenate(orders, axis=-1))
    fastest = found.cycles == found.cycles.min(-1, keepdims=True)
    best = np.where(fastest, _moved_bits(found), _NEVER).argmin(-1)[..., None]
    return Schedule(*(np.take_along_axis(column, best, -1)[..., 0] for column in found))


def _moved_bits(found: Schedule) -> Values:
    """Bits that cross the bus to DRAM."""
    return found.weight_bits + found.input_bits + 2 * found.sum_bits


def _tiles(conv: Conv) -> _Tiles:
    height, width = -(-conv.in_height // conv.stride), -(-conv.in_width // conv.stride)
    in_channels = conv.in_channels // conv.groups
    sides = (_powers(max(height, width)), _powers(in_channels), _powers(conv.out_channels))
    side, in_tile, out_tile = (a.ravel() for a in np.meshgrid(*sides, indexing="ij"))
    number = {
        "p": -(-height // side) * -(-width // side),
        "i": -(-in_channels // in_tile),
        "c": -(-conv.out_channels // out_tile),
    }
    return _Tiles(np.minimum(side, height), np.minimum(side, width), in_tile, out_tile, number)


def _powers(most: int) -> np.ndarray:
    """1, 2, 4, ... below `most`, then `most` itself."""
    return np.array([*(2**i for i in range((most - 1).bit_length())), most], np.int64)


def _tile_costs(device: BitFusion, conv: Conv, tiles: _Tiles, w_bits, a_bits):
    """Bits of one tile by operand, and the compute cycles of all tiles, [..., tilings]."""
    at_once = device.rows * pairs(w_bits, a_bits)
    row_steps = -(-(conv.kernel**2) * tiles.in_channels // at_once)
    column_steps = -(-tiles.out_channels // device.columns)
    pixels = tiles.height * tiles.width
    channels = tiles.out_channels if counts.is_depthwise(conv) else tiles.in_channels
    window = (conv.kernel - 1) * conv.dilation + 1
    height, width = (
        (side - 1) * conv.stride + window for side in (tiles.height, tiles.width)
    )  # of a tile's inputs
    bits = {
        "weights": row_steps * at_once * tiles.out_channels * w_bits,
        "inputs": height * width * channels * a_bits,
        "outputs": pixels * column_steps * device.columns * SUM_BITS,
    }
    number = np.prod(list(tiles.number.values()), axis=0)
    return bits, number * column_steps * pixels * row_steps


def _ordered(
    device: BitFusion, conv: Conv, tiles: _Tiles, order, tile_bits, room, compute
) -> Schedule:
    """All tilings under one order of loops, the outermost loop first."""
    over = {"weights": "ic", "inputs": "pc" if conv.groups > 1 else "pi", "outputs": "pc"}
    moved, held = {}, {}
    for name, its_loops in over.items():
        loops = [(tiles.number[loop], loop in its_loops) for loop in reversed(order)]
        moved[name], held[name] = _moved(tile_bits[name], loops, room[name])
    # The first load and the last store do not overlap with computing.
    first, last = sum(held.values()), held["outputs"]
    between = moved["weights"] + moved["inputs"] + 2 * moved["outputs"] - first - last
    first, between, last = (-(-bits // device.bus_bits) for bits in (first, between, last))
    return Schedule(
        cycles=first + np.maximum(compute, between) + last,
        compute_cycles=compute,
        weight_bits=moved["weights"],
        input_bits=moved["inputs"],
        sum_bits=moved["outputs"],
        passes=tiles.number["i"],
    )


def _moved(bits: np.ndarray, loops, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Bits of an operand that cross the bus, and how many of them are held at once.

    Goes through the loops from the innermost to the outermost. An operand that a loop does not
    change stays in its buffer if all of it fits.

    Args:
      bits: Bits of one tile.
      loops: Number of tiles, and whether they differ in this operand; the innermost loop first.
      room: Bits that fit the buffer.
    """
    held, fits = bits, np.ones(bits.shape, bool)
    for number, differs in loops:
        if differs:
            bits = bits * number
            fits = fits & (bits <= room)
            held = np.where(fits, bits, held)
        else:
            bits = np.where(fits, bits, bits * number)
    return bits, held
