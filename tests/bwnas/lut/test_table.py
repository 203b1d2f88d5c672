import dataclasses
import itertools
import logging

import numpy as np
import pytest

from qnas_jax import hardware, space
from qnas_jax.bwnas.lut import table
from qnas_jax.errors import InputError
from qnas_jax.hardware import size

SEARCHED = space.Space(
    blocks=(
        space.Block(in_channels=8, channels=16, stride=2, dilation=1, depth=2),
        space.Block(in_channels=16, channels=24, stride=1, dilation=2, depth=1),
    ),
    ops=(space.Op(3, 2), space.Op(5, 3), space.Op(7, 6)),
)
BITS = ((8, 8), (4, 6))


def built(per_layer=False, bits=BITS):
    parts = table.parts_of(SEARCHED, bits, per_layer)
    nsr = np.random.default_rng(0).random(sum(part.rows for part in parts)).astype(np.float32)
    nsr[3] = np.nan
    return table.build(nsr, SEARCHED, parts)


def all_choices(block, bits, per_layer):
    """Every path of a block at every bitwidth; the first layer's bitwidth varies slowest."""
    for first in bits:
        layers = [(first,), *[bits if per_layer else (first,)] * (block.depth - 1)]
        branches = [
            [space.Choice(op, *pair) for pair in layer for op in SEARCHED.ops] for layer in layers
        ]
        yield from itertools.product(*branches)


def size_by_hand(block, choices):
    total = 0
    for layer, (op, w_bits, _) in enumerate(choices):
        channels, stride = block.layer_shape(layer)
        convs = space.mbconv_convs(op, "", (32, 64, channels), block.channels, stride, 1)
        total += size.network_bytes(convs, w_bits)
    return total


@pytest.mark.parametrize("per_layer", [False, True])
def test_rows_are_all_paths_at_all_bitwidths_in_order_with_their_sizes(per_layer):
    rows = built(per_layer)
    assert rows.blocks == 2
    for number, block in enumerate(SEARCHED.blocks):
        expected = list(all_choices(block, BITS, per_layer))
        found = [rows.choices(row) for row in rows.rows_of(number)]
        assert found == expected
        assert len(set(expected)) == (36 if per_layer and number == 0 else 2 * 3**block.depth)
        sizes = rows.costs["size_bytes"][rows.rows_of(number)]
        assert sizes.tolist() == [size_by_hand(block, choices) for choices in expected]
    assert (rows.path[rows.rows_of(1), 1] == -1).all(), "no second layer"


def test_parts_say_how_many_rows_they_fill():
    shared = table.parts_of(SEARCHED, BITS, per_layer=False)
    assert [(part.block, part.rows) for part in shared] == [(0, 9), (0, 9), (1, 3), (1, 3)]
    single = table.parts_of(SEARCHED, BITS, per_layer=True)
    assert [(part.block, part.rows) for part in single] == [(0, 18), (0, 18), (1, 3), (1, 3)]


def test_a_table_is_read_as_it_was_written(tmp_path):
    written = built()
    written.costs["energy_mj"] = written.nsr * 2
    table.save(tmp_path / "deep" / "lut.npz", written)
    read = table.load(tmp_path / "deep" / "lut.npz")
    assert read.ops == SEARCHED.ops
    assert set(read.costs) == {"size_bytes", "energy_mj"}
    columns = [f.name for f in dataclasses.fields(read) if f.name not in ("ops", "costs")]
    pairs = [(getattr(written, name), getattr(read, name)) for name in columns]
    pairs += [(written.costs[name], read.costs[name]) for name in written.costs]
    for a, b in pairs:
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["lut.npz"]


def test_objectives_are_the_nsr_and_the_costs_of_a_block_in_the_order_asked_for():
    rows = built()
    rows.costs["latency_ms"] = np.arange(len(rows.nsr), dtype=np.float32)
    found = rows.objectives(1, ("latency_ms", "size_bytes"))
    assert found.dtype == np.float64
    assert len(found) == 6
    for place, row in enumerate(rows.rows_of(1)):
        expected = [rows.nsr[row], row, rows.costs["size_bytes"][row]]
        np.testing.assert_array_equal(found[place], expected)


def layer_ms(candidate, w_bits, a_bits):
    """Some cost that differs in all that it may depend on."""
    height, kernel = candidate.shape[0], candidate.op.kernel
    return height * kernel + len(candidate.place) / 7 + candidate.op.expansion * w_bits / a_bits


def matrix_of(rows, costs, **runs):
    """What layers cost on a device that only tests have."""
    layers = hardware.layers(hardware.places(SEARCHED.blocks, (32, 64)), rows.ops)
    return hardware.cost_matrix(hardware.Target("test", costs=costs, **runs), layers, rows.bits)


def test_the_bitwidths_of_a_table_are_all_its_pairs():
    assert built().bits == ((4, 6), (8, 8))
    assert built(per_layer=True, bits=((8, 4), (8, 8), (2, 8))).bits == ((2, 8), (8, 4), (8, 8))


@pytest.mark.parametrize("per_layer", [False, True])
def test_costs_are_summed_over_the_layers_of_each_path(per_layer):
    rows = built(per_layer)
    found = table.with_costs(rows, matrix_of(rows, {"latency_ms": layer_ms}))
    assert set(found.costs) == {"size_bytes", "latency_ms"}
    assert (found.costs["size_bytes"].dtype, found.costs["latency_ms"].dtype) == (
        np.int64,
        np.float64,
    )
    np.testing.assert_array_equal(found.costs["size_bytes"], rows.costs["size_bytes"])
    places = hardware.places(SEARCHED.blocks, (32, 64))
    for row in range(len(rows.nsr)):
        total = 0.0
        of_block = [place for place in places if place.block == rows.block[row]]
        for place, choice in zip(of_block, rows.choices(row), strict=True):
            ((candidate,),) = hardware.layers([place], [choice.op])
            total += layer_ms(candidate, np.int64(choice.w_bits), np.int64(choice.a_bits))
        assert found.costs["latency_ms"][row] == total, "the same sum in the same order"
    np.testing.assert_array_equal(found.nsr, np.where(np.isfinite(rows.nsr), rows.nsr, np.nan))
    assert set(rows.costs) == {"size_bytes"}, "the table that was given stays as it is"


def test_paths_that_the_target_does_not_run_lose_their_nsr(caplog):
    def some(candidate, w_bits, a_bits):
        runs = (candidate.op.kernel != 5 or candidate.place.endswith("layer0")) & (w_bits == 8)
        return np.where(runs, 1.0, np.nan)

    rows = built(bits=((8, 8), (4, 8)))
    with caplog.at_level(logging.INFO, "qnas_jax.bwnas.lut.table"):
        found = table.with_costs(rows, matrix_of(rows, {"energy_mj": some}))
    for row, nsr in enumerate(found.nsr):
        choices = rows.choices(row)
        runs = choices[0].w_bits == 8 and all(c.op.kernel != 5 for c in choices[1:])
        assert np.isposinf(nsr) if not runs else nsr == rows.nsr[row] or np.isnan(nsr)
    left_out = int(np.isposinf(found.nsr).sum())
    assert 0 < left_out < len(rows.nsr)
    expected = f"{left_out} of {len(rows.nsr)} rows are not run by the target; left out"
    assert caplog.records[-1].getMessage() == expected
    assert found.nsr.dtype == np.float32


def test_without_a_target_a_table_stays_as_it_is():
    rows = built()
    found = table.with_costs(rows, matrix_of(rows, {}))
    np.testing.assert_array_equal(found.nsr, rows.nsr)
    assert found.costs.keys() == {"size_bytes"}
    np.testing.assert_array_equal(found.costs["size_bytes"], rows.costs["size_bytes"])


def test_paths_without_a_finite_nsr_are_named_but_not_all_of_very_many(caplog):
    parts = table.parts_of(SEARCHED, BITS, per_layer=True)
    nsr = np.ones(sum(part.rows for part in parts), np.float32)
    nsr[1], nsr[-1] = np.inf, np.nan
    with caplog.at_level(logging.WARNING, "qnas_jax.bwnas.lut.table"):
        table.build(nsr, SEARCHED, parts)
        assert [record.getMessage() for record in caplog.records] == [
            "block 1, k3e2-k5e3.w8a8: NSR is not finite; left out",
            "block 2, k7e6.w4a6: NSR is not finite; left out",
        ]
        caplog.clear()
        table.build(nsr * np.nan, SEARCHED, parts)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == table.LOGGED_ROWS + 1
    assert lines[-1] == f"and {len(nsr) - table.LOGGED_ROWS} more rows"


@pytest.mark.parametrize("content", [None, b"", b"no table", b"PK\x03\x04cut", "columns", "array"])
def test_what_is_no_table_is_named_in_one_line(tmp_path, content):
    file = tmp_path / "lut.npz"
    if content == "columns":
        np.savez(file, ops=np.zeros((2, 2), np.int32), block=np.zeros(3))
    elif content == "array":
        with file.open("wb") as out:
            np.save(out, np.zeros(3))
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError) as error:
        table.load(file)
    state = "is missing" if content is None else "cannot be read ("
    assert str(error.value).startswith(f"{file}: {state}")
    assert "\n" not in str(error.value)
