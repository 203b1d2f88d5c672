import itertools

import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.hardware import candidates, matrix, measured, target

BLOCKS = (
    space.Block(in_channels=8, channels=16, stride=2, dilation=1, depth=2),
    space.Block(in_channels=16, channels=24, stride=1, dilation=2, depth=1),
)
PLACES = candidates.places(BLOCKS, (16, 32))
OPS = (space.Op(3, 2), space.Op(5, 3))
BITS = ((8, 8), (4, 8))
CONDITIONS = ("a runtime, with a comma", "1.2", 'my "b"', 4)
STEM = [space.Conv("encoder/stem", 3, 2, 1, 1, 3, 8, 32, 64)]
HEAD = [
    space.Conv("aspp/pool", 1, 1, 1, 1, 24, 8, 1, 1),
    space.Conv("aspp/point", 1, 1, 1, 1, 24, 8, 8, 16),
]


def row(probe, latency_ms, energy_mj=None):
    shape = (0.1, latency_ms, latency_ms * 1.5, None, 50, energy_mj)
    return measured.Row(probe, latency_ms, *shape, *CONDITIONS)


def fixed_rows():
    stem = measured.ProbeKey("stem", "", 32, 64, 3, 8, 2, 1, 8, 8)
    return [row(stem, 0.5), row(measured.ProbeKey("head", "", 8, 16, 24, 19, 1, 1, 8, 8), 0.25)]


def layer_rows():
    wanted = itertools.product(PLACES, OPS, BITS)
    probes = [measured.probe_key(place, op, *pair) for place, op, pair in wanted]
    return [row(probe, 1 + number / 8) for number, probe in enumerate(probes)]


def written(path, rows):
    for one in rows:
        measured.append(path, one)
    return path


@pytest.fixture
def file(tmp_path):
    return written(tmp_path / "tables" / "board.csv", fixed_rows() + layer_rows())


def test_what_was_appended_is_read(file):
    assert measured.read(file) == fixed_rows() + layer_rows()
    header, stem, *_ = file.read_text().splitlines()
    assert header == (
        "place,path,in_height,in_width,in_channels,channels,stride,dilation,w_bits,a_bits,"
        "latency_ms,std_ms,p50_ms,p90_ms,p99_ms,count,energy_mj,"
        "runtime,runtime_version,device,threads"
    )
    assert stem == (
        'stem,,32,64,3,8,2,1,8,8,0.5,0.1,0.5,0.75,,50,,"a runtime, with a comma",1.2,"my ""b""",4'
    )


def test_every_column_is_explained():
    described = (measured.__doc__ or "").replace(",", " ").split()
    assert set(measured.COLUMNS) <= set(described)


def test_a_table_of_whole_blocks_and_float_networks_is_read_too(tmp_path):
    shape = (16, 32, 8, 16, 2, 1)
    rows = [
        row(measured.ProbeKey("block1", "k3e2-k5e3", *shape, 8, 8), 3.0, energy_mj=0.0),
        row(measured.ProbeKey("block1", "k3e2-k5e3", *shape, 32, 32), 9.0, energy_mj=2.5),
    ]
    assert measured.read(written(tmp_path / "t.csv", rows)) == rows


def test_a_line_that_was_cut_off_stands_alone_and_is_told(file):
    whole = file.read_text()
    last = whole.splitlines()[-1]
    file.write_text(whole[: -len(last) // 2])
    done = {one.probe for one in (fixed_rows() + layer_rows())[:-1]}
    measured.append(file, layer_rows()[-1])
    lines = file.read_text().splitlines()
    assert lines[-1] == last
    with pytest.raises(InputError) as error:
        measured.read(file)
    number = len(whole.splitlines())
    assert str(error.value).startswith(f"{file}, line {number}: ")
    assert "cut off can be deleted" in str(error.value)
    file.write_text("\n".join([*lines[:-2], lines[-1]]))  # and none at its end
    assert {one.probe for one in measured.read(file)} == done | {layer_rows()[-1].probe}


LATENCY = "a number above 0; what was not measured has no line"
CHANGES = [
    ("place", "block0/layer1", "stem, head, block3/layer1 or block3"),
    ("path", "k3", "k3e6 or k3e6-k5e3, or nothing for stem and head"),
    ("in_height", "0", "a whole number from 1"),
    ("channels", "1.5", "a whole number from 1"),
    ("w_bits", "16", "2 to 8, or 32 for float"),
    ("latency_ms", "0", LATENCY),
    ("latency_ms", "nan", LATENCY),
    ("latency_ms", "fast", LATENCY),
    ("latency_ms", "", LATENCY),
    ("latency_ms", "-0.5", LATENCY),
    ("latency_ms", "-inf", LATENCY),
    ("latency_ms", "1e999", LATENCY),
    ("latency_ms", "1_000", LATENCY),
    ("latency_ms", "\u0661", LATENCY),
    ("std_ms", "-1", "a number from 0, or nothing"),
    ("p99_ms", "inf", "a number from 0, or nothing"),
    ("count", "", "a whole number from 1"),
    ("energy_mj", "x", "a number from 0, or nothing"),
    ("threads", "-2", "a whole number from 1"),
]


@pytest.mark.parametrize(("column", "cell", "allowed"), CHANGES)
def test_a_wrong_cell_is_told_with_line_column_and_what_is_allowed(tmp_path, column, cell, allowed):
    path = written(tmp_path / "t.csv", layer_rows()[:2])
    lines = path.read_text().replace("a runtime, with a comma", "r").splitlines()
    cells = lines[2].split(",")
    cells[measured.COLUMNS.index(column)] = cell
    path.write_text("\n".join([*lines[:2], ",".join(cells)]))
    with pytest.raises(InputError) as error:
        measured.read(path)
    assert str(error.value) == f"{path}, line 3, column {column}: {cell!r}, must be {allowed}"


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (layer_rows()[0].probe._replace(path="k3e2-k3e2"), "'k3e2-k3e2' for block1/layer0, must"),
        (layer_rows()[0].probe._replace(path=""), "'' for block1/layer0, must be one op"),
        (fixed_rows()[0].probe._replace(path="k3e2"), "'k3e2' for stem, must be one op"),
    ],
)
def test_a_path_fits_its_place(tmp_path, probe, message):
    path = written(tmp_path / "t.csv", [row(probe, 1.0)])
    with pytest.raises(InputError) as error:
        measured.read(path)
    assert str(error.value).startswith(f"{path}, line 2, column path: {message}")


def test_a_probe_stands_once_and_all_lines_are_of_one_device(tmp_path):
    one, two = layer_rows()[:2]
    path = written(tmp_path / "twice.csv", [one, two, one])
    with pytest.raises(InputError) as error:
        measured.read(path)
    assert (
        str(error.value) == f"{path}, line 4: block1/layer0 k3e2 stands in line 2 too; delete one"
    )
    path = written(tmp_path / "two.csv", [one, two._replace(threads=1)])
    with pytest.raises(InputError) as error:
        measured.read(path)
    expected = f"{path}, line 3, column threads: 1, must be 4 as in line 2; take a file for each"
    assert str(error.value) == expected


def from_a_spreadsheet(lines):
    """A table as such programs save it: marked, with CR LF, and with more cells than it has."""
    lines = [f"{line},," for line in lines]
    lines[2] = lines[2].replace(",8,16,", ',"8" , 16 ,')
    return "\ufeff" + "\r\n".join([*lines[:3], "", *lines[3:], "," * 22, "", "\t", ""])


def test_a_table_that_a_spreadsheet_has_saved_is_read_and_added_to(file):
    rows, lines = measured.read(file), file.read_text().splitlines()
    file.write_bytes(from_a_spreadsheet(lines).encode())
    assert measured.read(file) == rows
    more = rows[-1]._replace(probe=rows[-1].probe._replace(path="k7e6"))
    measured.append(file, more)
    assert measured.read(file) == [*rows, more]
    file.write_bytes(("\ufeff" + "\r".join(lines)).encode())  # an old Mac's
    assert measured.read(file) == rows


def table_text():
    return "\n".join(
        [",".join(measured.COLUMNS), "head,,8,16,24,19,1,1,8,8,0.25,,,,,50,,r,1,d,4", ""]
    )


UTF_8 = "is no text in UTF-8; save it as CSV in UTF-8, with commas between cells and decimal points"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table_text().encode("utf-16"), f", line 1: {UTF_8}"),
        (table_text().encode("utf-16-le"), f", line 1: {UTF_8}"),
        (table_text().replace(",d,", ",\u00b5,").encode("latin-1"), f", line 2: {UTF_8}"),
        (
            table_text().replace(",", ";").encode(),
            ", line 1: has ';' between cells; save it",
        ),
        (table_text().replace(",", "\t").encode(), ", line 1: has '\\t' between cells; save it"),
        (
            (table_text() + "stem;;8;16;24;19;1;1;8;8;0,25").encode(),
            ", line 3: has ';'",
        ),
        (
            table_text().replace("0.25", "0,25").encode(),
            ", line 2: 22 cells, must be 21; quote texts that hold a comma, and write numbers as",
        ),
        (
            table_text().replace("0.25", '"0,25"').encode(),
            f", line 2, column latency_ms: '0,25', must be {LATENCY}; write numbers as 1234.5",
        ),
        (
            table_text().replace("0.25", '"1.234,25"').encode(),
            f", line 2, column latency_ms: '1.234,25', must be {LATENCY}; write numbers as 1234.5",
        ),
        (
            table_text().replace("threads", "threads,power").encode(),
            ", line 1: column 'power' where None must be; the columns are place,path,",
        ),
        (
            table_text().replace("energy_mj,", "").encode(),
            ", line 1: column 'runtime' where 'energy_mj' must be; the columns are place,path,",
        ),
        (
            (table_text() + "\n\n" + table_text().splitlines()[1]).encode(),
            ", line 5: head  stands in line 2 too; delete one",
        ),
        (
            table_text().replace(",d,", ',"d,').encode(),
            ", line 2: has a cell that goes over several lines; close its quotes",
        ),
        (b"x" * 200_000, ", line 1: field larger than field limit (131072); save it as CSV"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_with_its_line_and_the_way_out(
    tmp_path, content, message
):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        measured.read(path)
    assert str(error.value).startswith(f"{path}{message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"place,path\n", b"a,b\n"])
def test_what_is_no_table_is_told_in_one_line(tmp_path, content):
    path = tmp_path / "t.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        measured.read(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    if content:
        with pytest.raises(InputError, match="line 1: column"):
            measured.append(path, layer_rows()[0])
        assert path.read_bytes() == content


def test_what_is_missing_is_listed(file):
    rows = measured.read(file)
    assert measured.missing(rows, PLACES, OPS, BITS) == []
    del rows[3], rows[5]
    gone = [one.probe for one in layer_rows() if one not in rows]
    assert len(gone) == 2
    assert measured.missing(rows, PLACES, OPS, BITS) == gone
    more = measured.missing(rows, PLACES, (*OPS, space.Op(7, 6)), BITS)
    assert len(more) == 2 + len(PLACES) * len(BITS)


def costs_of(device, ops, bits):
    return matrix.cost_matrix(device, candidates.layers(PLACES, ops), bits)


def test_costs_are_those_of_the_table_and_what_is_not_in_it_is_not_run(file):
    device = measured.with_table(target.NONE, file, PLACES)
    assert (device.kernels, device.expansions) == ((3, 5), (2, 3))
    assert device.bits == ((4, 8), (8, 8))
    assert set(device.costs) == {"latency_ms"}, "not all lines have an energy"
    found = costs_of(device, OPS, BITS)["latency_ms"]
    by_probe = {one.probe: one.latency_ms for one in layer_rows()}
    for (p, place), (o, op) in itertools.product(enumerate(PLACES), enumerate(OPS)):
        expected = [by_probe[measured.probe_key(place, op, *pair)] for pair in BITS]
        assert found[p, o].tolist() == expected
    for ops, bits in (([space.Op(3, 3)], BITS), (OPS, [(4, 4)])):
        assert np.isnan(costs_of(device, ops, bits)["latency_ms"]).all()
    fixed = matrix.fixed_costs(device, {"stem": STEM, "head": HEAD})
    assert sum(fixed["latency_ms"].values()) == 0.75


def test_a_line_that_is_missing_in_one_place_is_nan_there_alone(tmp_path):
    rows = layer_rows()
    gone = rows.pop(3).probe
    device = measured.with_table(target.NONE, written(tmp_path / "t.csv", rows), PLACES)
    found = costs_of(device, OPS, BITS)["latency_ms"]
    (missing,) = np.argwhere(np.isnan(found)).tolist()
    place, op, pair = (axis[i] for axis, i in zip((PLACES, OPS, BITS), missing, strict=True))
    assert measured.probe_key(place, op, *pair) == gone


def test_a_table_restricts_a_target_and_replaces_its_latency_alone(tmp_path):
    rows = [one._replace(energy_mj=one.latency_ms * 2) for one in fixed_rows() + layer_rows()]
    path = written(tmp_path / "t.csv", rows)
    model = target.of_model(None, dict.fromkeys(("latency_ms", "energy_mj"), lambda *_: 100.0))
    both = measured.with_table(target.Target("chip", kernels=(3,), costs=model), path, PLACES)
    assert both.kernels == (3,)
    for name, factor in (("latency_ms", 1), ("energy_mj", 2)):
        found = costs_of(both, OPS, BITS[:1])[name]
        assert found[0, 0] == [factor * layer_rows()[0].latency_ms]
    path = written(tmp_path / "u.csv", fixed_rows() + layer_rows())
    latency = measured.with_table(target.Target("chip", costs=model), path, PLACES)
    energy = costs_of(latency, OPS, BITS[:1])["energy_mj"]
    assert energy[0, 0] == [300.0], "of the model: three convolutions"
    with pytest.raises(InputError, match=r"'odd' runs none of the space's kernels \(3, 5\)"):
        measured.with_table(target.Target("odd", kernels=(9,)), path, PLACES)


def test_a_table_of_another_image_size_or_with_a_hole_is_refused(file, tmp_path):
    other = candidates.places(BLOCKS, (24, 48))
    with pytest.raises(InputError) as error:
        measured.with_table(target.NONE, file, other)
    message = str(error.value)
    assert "block1/layer0 was measured as (16, 32, 8, 16, 2, 1), must be (24, 48, 8, 16" in message
    assert "hardware.image_size" in message
    path = written(tmp_path / "t.csv", [one for one in layer_rows() if "2/" not in one.probe.place])
    with pytest.raises(InputError, match="nothing was measured for block2/layer0"):
        measured.with_table(target.NONE, path, PLACES)
    device = measured.with_table(target.NONE, written(tmp_path / "u.csv", layer_rows()), PLACES)
    with pytest.raises(InputError, match="nothing was measured for stem, 32 x 64, w8a8"):
        matrix.fixed_costs(device, {"stem": STEM})
