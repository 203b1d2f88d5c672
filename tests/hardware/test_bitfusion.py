import itertools
import math

import numpy as np
import pytest

from qnas_jax.errors import InputError
from qnas_jax.hardware import bitfusion, published
from qnas_jax.hardware.devices import BITFUSION, BITFUSION_EYERISS, BITFUSION_STRIPES
from qnas_jax.space import Conv

DENSE = Conv("dense", 1, 1, 1, 1, 8, 8, 4, 4)
CONVS = (
    DENSE,
    Conv("stem", 3, 2, 1, 1, 3, 20, 31, 31),
    Conv("dilated", 3, 1, 2, 1, 24, 17, 9, 9),
    Conv("depthwise", 3, 2, 1, 40, 40, 40, 28, 28),
    Conv("wide", 1, 1, 1, 1, 700, 90, 7, 7),
    Conv("oblong", 5, 1, 1, 12, 12, 12, 6, 40),
    Conv("classifier", 1, 1, 1, 1, 130, 1000, 1, 1),
)
BITS = ((8, 8), (6, 6), (6, 4), (4, 8), (4, 4), (3, 5), (2, 2))


def reference(device, conv, w_bits, a_bits):
    """Least cycles and, of those, least bits to and from DRAM; in plain loops."""
    depthwise = conv.groups > 1
    out_height, out_width = (
        math.ceil(side / conv.stride) for side in (conv.in_height, conv.in_width)
    )
    depth = 1 if depthwise else conv.in_channels
    at_once = device.rows * (8 // w_bits) * (8 // a_bits)
    best = None
    sides = (max(out_height, out_width), depth, conv.out_channels)
    for side, inputs, outputs in itertools.product(*map(powers, sides)):
        height, width = min(side, out_height), min(side, out_width)
        tiles = {
            "pixels": math.ceil(out_height / side) * math.ceil(out_width / side),
            "inputs": math.ceil(depth / inputs),
            "outputs": math.ceil(conv.out_channels / outputs),
        }
        rows = math.ceil(conv.kernel**2 * inputs / at_once)
        columns = math.ceil(outputs / device.columns)
        in_height, in_width = (
            (n - 1) * conv.stride + (conv.kernel - 1) * conv.dilation + 1 for n in (height, width)
        )
        channels = outputs if depthwise else inputs
        operands = [  # bits of a tile, the loops it changes in, bits that fit
            (rows * at_once * outputs * w_bits, {"inputs", "outputs"}, device.weights),
            (
                in_height * in_width * channels * a_bits,
                {"pixels", "outputs" if depthwise else "inputs"},
                device.inputs,
            ),
            (
                height * width * columns * device.columns * 32,
                {"pixels", "outputs"},
                device.outputs,
            ),
        ]
        if any(bits > sram.size_bytes * 4 for bits, _, sram in operands):
            continue
        compute = math.prod(tiles.values()) * columns * height * width * rows
        for order in itertools.permutations(tiles):
            (weights, in_bits, sums), held = zip(
                *(transfers(tiles, order, *operand) for operand in operands), strict=True
            )
            first, last, moved = sum(held), held[2], weights + in_bits + 2 * sums
            waits = math.ceil(first / device.bus_bits) + math.ceil(last / device.bus_bits)
            between = math.ceil((moved - first - last) / device.bus_bits)
            found = (max(compute, between) + waits, moved)
            best = found if best is None else min(best, found)
    return best


def transfers(tiles, order, bits, loops, sram):
    """Bits moved and bits held: whatever surrounds the part that fits loads it anew."""
    inside = list(reversed(order))
    kept = len(inside)
    for place in range(len(inside)):
        part = bits * math.prod(tiles[loop] for loop in inside[: place + 1] if loop in loops)
        if inside[place] in loops and part > sram.size_bytes * 4:
            kept = place
            break
    held = bits * math.prod(tiles[loop] for loop in inside[:kept] if loop in loops)
    return held * math.prod(tiles[loop] for loop in inside[kept:]), held


def powers(most):
    return sorted({min(2**i, most) for i in range(12)})


@pytest.mark.parametrize("conv", CONVS, ids=lambda conv: conv.name)
@pytest.mark.parametrize(
    "device", [BITFUSION, BITFUSION_EYERISS, BITFUSION_STRIPES], ids=["default", "e", "s"]
)
def test_the_fastest_tiling_is_found(device, conv):
    w_bits, a_bits = np.array(BITS).T
    found = bitfusion.schedule(device, conv, w_bits, a_bits)
    moved = found.weight_bits + found.input_bits + 2 * found.sum_bits
    expected = [reference(device, conv, *bits) for bits in BITS]
    assert list(zip(found.cycles, moved, strict=True)) == expected


def test_a_layer_that_fits_by_hand():
    found = bitfusion.schedule(BITFUSION, DENSE, 8, 8)
    loaded = 8 * 8 * 8 + 16 * 8 * 8 + 16 * 8 * 32  # weights, activations, sums to add to
    assert loaded % 128 == 0
    assert found.compute_cycles == 16
    assert found.cycles == loaded // 128 + 16 + 16 * 8 * 32 // 128


def test_energy_by_hand():
    found = bitfusion.energy(BITFUSION, DENSE, 8, 4)
    loaded = np.array([8 * 8 * 8 * 2, 16 * 8 * 4, 16 * 8 * 32])  # rows are padded to 16
    sram_pj = 1024 * (8 * 0.107 + 4 * 0.2) + loaded[0] * 0.135 + loaded[1] * 0.174
    sram_pj += 2 * loaded[2] * (0.08 + 0.122)
    assert found.core_mj == pytest.approx(16 * 29.4e-9)
    assert found.sram_mj == pytest.approx(sram_pj * 1e-9)
    assert found.dram_mj == pytest.approx((loaded.sum() + loaded[2]) * 15e-9)
    latency_ms = bitfusion.latency_ms(BITFUSION, DENSE, 8, 4)
    assert found.static_mj == pytest.approx(BITFUSION.static_w * latency_ms)
    assert bitfusion.energy_mj(BITFUSION, DENSE, 8, 4) == pytest.approx(sum(found))


def test_six_bits_compute_no_faster_than_eight_but_move_less():
    bits = np.array([3, 4, 6, 8])
    assert bitfusion.pairs(bits, bits).tolist() == [4, 4, 1, 1]
    assert bitfusion.pairs(1, 8) == bitfusion.pairs(2, 8) == 4
    for conv in published.mobilenet_v1_convs():
        found = bitfusion.schedule(BITFUSION, conv, bits, bits)
        products = -(-conv.macs // (8 * 8 * bitfusion.pairs(bits, bits)))
        assert (found.compute_cycles >= products).all()
        assert found.cycles[0] <= found.cycles[1] <= found.cycles[2] <= found.cycles[3]
        energy = bitfusion.energy_mj(BITFUSION, conv, bits, bits)
        assert energy[0] < energy[1] < energy[2] < energy[3]
    pointwise = Conv("a", 1, 1, 1, 1, 512, 512, 14, 14)  # bound by its products
    found = bitfusion.schedule(BITFUSION, pointwise, bits, bits)
    assert found.compute_cycles.tolist() == [14 * 14 * 512 * 512 // 64 // n for n in (4, 4, 1, 1)]


def test_tables_equal_their_entries():
    w_bits, a_bits = np.array([2, 4, 6, 8])[:, None], np.array([3, 4, 8])
    for conv in CONVS[1:5]:
        table = bitfusion.energy_mj(BITFUSION_EYERISS, conv, w_bits, a_bits)
        entries = [
            [bitfusion.energy_mj(BITFUSION_EYERISS, conv, w, a) for a in a_bits]
            for w in w_bits.ravel()
        ]
        np.testing.assert_array_equal(table, entries)


def test_a_layer_that_no_buffer_holds_is_refused():
    huge = Conv("huge", 301, 1, 1, 1, 4, 4, 8, 8)
    with pytest.raises(InputError, match="huge: no tile of it fits the buffers"):
        bitfusion.latency_ms(BITFUSION, huge, 8, 8)
