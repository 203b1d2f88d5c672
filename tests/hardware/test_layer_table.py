import itertools

import numpy as np
import pytest

from qnas_jax.errors import InputError
from qnas_jax.hardware import layer_table

HEADER = "layer,w_bits,a_bits,latency_ms,energy_mj"
LINES = [
    HEADER,
    "encoder/stem,8,8,0.5,2",
    "encoder/block1/layer0/expand,4,8,1e-3,",
    "encoder/block1/layer0/expand,2,3,0,7.25",
]
STEM, EXPAND = ("encoder/stem", 8, 8), "encoder/block1/layer0/expand"
VALUES = {
    "latency_ms": {STEM: 0.5, (EXPAND, 4, 8): 0.001, (EXPAND, 2, 3): 0.0},
    "energy_mj": {STEM: 2.0, (EXPAND, 2, 3): 7.25},
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "layers.csv"


def written(path, lines):
    path.write_text("\n".join([*lines, ""]))
    return path


def refused(path, read=layer_table.read):
    with pytest.raises(InputError) as error:
        read(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_table_is_read(path):
    assert layer_table.read(written(path, LINES)) == VALUES


def test_a_table_that_a_spreadsheet_has_saved_is_read(path):
    stem, *others = (f"{line},," for line in LINES[1:])
    stem = stem.replace("encoder/stem,8", '"encoder/stem" , "8"')
    lines = [f"{HEADER},,", stem, "", *others, "," * 6, ""]
    path.write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    assert layer_table.read(path) == VALUES


@pytest.mark.parametrize("name", ["latency_ms", "energy_mj"])
def test_a_table_of_one_cost_has_no_other(path, name):
    lines = [f"layer,w_bits,a_bits,{name}", "encoder/stem,8,8,3"]
    assert layer_table.read(written(path, lines)) == {name: {STEM: 3.0}}


def test_cells_that_a_line_lacks_were_not_measured(path):
    expected = {"latency_ms": {STEM: 0.5}, "energy_mj": {}}
    assert layer_table.read(written(path, [HEADER, "encoder/stem,8,8,0.5"])) == expected


@pytest.mark.parametrize(
    "header",
    [
        "layer,w_bits,a_bits",
        "layer,w_bits,a_bits,latency",
        "layer,a_bits,w_bits,latency_ms",
        "layer,w_bits,latency_ms",
        "layer,w_bits,a_bits,energy_mj,latency_ms",
        "layer,w_bits,a_bits,latency_ms,latency_ms",
        "layer,w_bits,a_bits,latency_ms,power",
        "Layer,w_bits,a_bits,latency_ms",
        "encoder/stem,8,8,0.5",
    ],
)
def test_another_header_is_refused_with_what_it_must_be(path, header):
    assert refused(written(path, [header, *LINES[1:]])) == (
        f"{path}, line 1: columns {header!r}, must be layer,w_bits,a_bits and then latency_ms or "
        "energy_mj or both"
    )


def test_an_empty_file_has_no_header(path):
    assert refused(written(path, [])).startswith(f"{path}, line 1: columns '', must be layer,")


@pytest.mark.parametrize("column", ["w_bits", "a_bits"])
@pytest.mark.parametrize("cell", ["1", "9", "32", "0", "-4", "4.0", "", "four"])
def test_bits_out_of_range_are_told_with_line_and_column(path, column, cell):
    bits = {"w_bits": "8", "a_bits": "8", column: cell}
    lines = [*LINES, "", f"encoder/stem,{bits['w_bits']},{bits['a_bits']},1,1"]
    message = refused(written(path, lines))
    assert message == f"{path}, line 6, column {column}: {cell!r}, must be 2 to 8"


@pytest.mark.parametrize("column", ["latency_ms", "energy_mj"])
@pytest.mark.parametrize("cell", ["-1", "nan", "inf", "1e999", "fast", "1_000", "0x1"])
def test_what_is_no_cost_is_told_with_line_and_column(path, column, cell):
    costs = {"latency_ms": "1", "energy_mj": "", column: cell}
    lines = [*LINES, f"head,8,8,{costs['latency_ms']},{costs['energy_mj']}"]
    message = refused(written(path, lines))
    expected = f"{path}, line 5, column {column}: {cell!r}, must be a number from 0, or nothing"
    assert message == expected


def test_a_line_that_stands_twice_is_told(path):
    message = refused(written(path, [*LINES, "head,8,8,1,1", f"{EXPAND},4,8,0.002,"]))
    assert message == f"{path}, line 6: {EXPAND} 4 8 stands twice; delete one"
    assert len(layer_table.read(written(path, [*LINES, f"{EXPAND},8,4,1,"]))["latency_ms"]) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n".join(LINES).encode("utf-16"), ", line 1: is no text in UTF-8; save it as CSV"),
        ("\n".join(LINES).replace(",", ";").encode(), ", line 1: has ';' between cells; save it"),
        (f'{HEADER}\n"head,8,8\n1,'.encode(), ", line 2: has a cell that goes over several"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(path, content, message):
    path.write_bytes(content)
    assert refused(path).startswith(f"{path}{message}")


def test_a_file_that_is_not_there_is_told(path):
    assert refused(path).endswith(f"{path}: no such file")


def test_costs_are_those_of_each_layer_and_pair_of_bitwidths(path):
    layers, bits = ("stem", "expand", "head"), ((8, 8), (4, 8), (4, 4), (2, 3))
    rng = np.random.default_rng(0)
    values = {key: rng.random(2).round(6) for key in itertools.product(layers, bits)}
    lines = [f"{layer},{w},{a},{v[0]},{v[1]}" for (layer, (w, a)), v in values.items()]
    written(path, [HEADER, *rng.permutation(lines)])
    for place, name in enumerate(("latency_ms", "energy_mj")):
        found = layer_table.costs(path, name, ("head", "stem"), bits[::-1])
        expected = [[values[layer, b][place] for b in bits[::-1]] for layer in ("head", "stem")]
        assert found.dtype == np.float64
        assert found.tolist() == expected


@pytest.mark.parametrize(
    ("name", "layer", "bits", "message"),
    [
        ("latency_ms", "head", (8, 8), "no latency_ms of head at w8a8; every layer needs a line"),
        ("latency_ms", EXPAND, (8, 4), f"no latency_ms of {EXPAND} at w8a4; every layer needs"),
        ("energy_mj", EXPAND, (4, 8), f"no energy_mj of {EXPAND} at w4a8; every layer needs"),
        ("size_bytes", EXPAND, (4, 8), "has no size_bytes; it has latency_ms, energy_mj"),
    ],
)
def test_what_is_missing_is_named(path, name, layer, bits, message):
    written(path, LINES)
    layers = ("encoder/stem", layer) if bits == (8, 8) else (layer,)
    found = refused(path, lambda p: layer_table.costs(p, name, layers, (bits,)))
    assert found.startswith(f"{path}: {message}")


def test_a_cost_that_no_line_has_is_missing(path):
    def energy(p):
        return layer_table.costs(p, "energy_mj", ("encoder/stem",), ((8, 8),))

    written(path, [HEADER, "encoder/stem,8,8,0.5,"])
    assert refused(path, energy) == f"{path}: has no energy_mj; it has latency_ms"
    written(path, [HEADER])
    assert refused(path, energy) == f"{path}: has no energy_mj; it has nothing"
