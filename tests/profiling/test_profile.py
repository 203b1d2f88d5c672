"""What is timed, what stands in the table, and how a profiling goes on."""

import itertools

import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.export import runtimes
from qnas_jax.export.runtimes import Runtime
from qnas_jax.hardware import board, candidates, matrix, measured, size
from qnas_jax.hardware import target as targets
from qnas_jax.nn import mobilenet
from qnas_jax.nn.deeplab import DeepLabV3
from qnas_jax.profiling import probes, profile
from qnas_jax.profiling.timing import Effort
from small_network import BLOCKS, FIRST

SHAPE = (40, 48, 3)
SPACE = space.Space(BLOCKS, (space.Op(3, 3), space.Op(5, 2)))
BITS = ((8, 8), (4, 6))
QUICK = Effort(width=1.0, limit_s=0.0, bursts=2, burst_s=0.0, runs=2, warm_up=1)


def student(subnet):
    paths = tuple(tuple(choice.op for choice in block) for block in subnet)
    return DeepLabV3(mobilenet.MobileNetV2(8, FIRST, BLOCKS, paths), 16, (2, 3), 5)


@pytest.fixture(scope="module")
def wanted():
    return probes.layers(student, SPACE, BITS, SHAPE)


def fake_runtime(file, load):
    def unused(*_):
        raise AssertionError("not asked for")

    return Runtime("fake", "1.0", ".fake", size.ONNX_QDQ, file, load, unused, unused, "")


def fake(written=None, fails_at=None):
    """A runtime that writes next to nothing and runs at once."""
    count = itertools.count()

    def file(network):
        if next(count) == fails_at:
            raise KeyboardInterrupt
        if written is not None:
            written.append(network)
        return network.out.name.encode()

    return fake_runtime(file, lambda path, threads: path.read_text)


def test_the_probes_are_all_that_a_search_asks_for(wanted):
    where = candidates.places(BLOCKS, (20, 24))
    rows = [row_of(probe) for probe in wanted]
    assert measured.missing(rows, where, SPACE.ops, BITS) == []
    layers = sum(block.depth for block in BLOCKS)
    assert len(wanted) == layers * len(SPACE.ops) * len(BITS) + 2
    fixed = [probe for probe in wanted if not probe.path]
    assert fixed == [
        ("stem", "", 40, 48, 3, 8, 1, 1, 8, 8),
        ("head", "", 10, 12, 16, 5, 1, 1, 8, 8),
    ]


def row_of(probe, latency_ms=1.0):
    figures = (latency_ms, None, None, None, None, 1, None)
    return measured.Row(probe, *figures, "fake", "1.0", runtimes.device(), 1)


def test_a_probe_is_the_op_that_it_says(wanted):
    for probe, piece in wanted.items():
        if probe.path:
            op = space.Op(*map(int, probe.path[1:].split("e")))
            expand, depthwise, project = piece.convs
            assert (depthwise.kernel, depthwise.stride) == (op.kernel, probe.stride)
            assert depthwise.dilation == probe.dilation
            assert expand.weights.shape[-1] == op.expansion * probe.in_channels
            assert project.out.shape[-1] == probe.channels
            assert {conv.w_bits for conv in piece.convs} == {probe.w_bits}
            assert piece.out.grid.bits == probe.a_bits
        assert piece.x.shape == probe[2:5]


def test_float_probes_are_those_of_the_float_network():
    found = probes.layers(student, SPACE, (None,), SHAPE)
    assert {probe[-2:] for probe in found} == {(32, 32)}
    assert all(conv.w_bits is None for piece in found.values() for conv in piece.convs)


def test_blocks_are_random_paths_in_one_piece():
    found = probes.blocks(student, SPACE, BITS, SHAPE, count=8, seed=0)
    assert found.keys() == probes.blocks(student, SPACE, BITS, SHAPE, count=8, seed=0).keys()
    assert {probe.place for probe in found} == {"block1", "block2"}
    for probe, piece in found.items():
        depth = BLOCKS[int(probe.place[5:]) - 1].depth
        assert len(probe.path.split("-")) == depth
        assert len(piece.convs) == 3 * depth
        assert {conv.w_bits for conv in piece.convs} == {probe.w_bits}
    assert len({s.path for s in found if s.place == "block1"}) > 1


def test_a_table_can_be_searched_once_it_is_filled(wanted, tmp_path):
    table = tmp_path / "runs" / "t.csv"
    profile.fill(table, wanted, fake(), 1, QUICK)
    rows = measured.read(table)
    assert {row.probe for row in rows} == wanted.keys()
    assert {row.count for row in rows} == {4}
    where = candidates.places(BLOCKS, (20, 24))
    target = measured.with_table(targets.NONE, table, where)
    assert target.bits == ((4, 6), (8, 8))
    (op, other), by_probe = SPACE.ops, {row.probe: row.latency_ms for row in rows}
    subnet = ((space.Choice(op, 8, 8), space.Choice(other, 8, 8)), (space.Choice(op, 4, 6),))
    pairs = zip(where, ((op, 8, 8), (other, 8, 8), (op, 4, 6)), strict=True)
    total = sum(by_probe[measured.probe_key(place, *choice)] for place, choice in pairs)
    costs = matrix.cost_matrix(target, candidates.layers(where, SPACE.ops), BITS)
    found = matrix.subnet_costs(costs, SPACE.ops, BITS, subnet)
    assert found["latency_ms"] == pytest.approx(total)


def test_an_interrupted_profiling_measures_what_is_missing_and_nothing_else(
    wanted, tmp_path, monkeypatch
):
    monkeypatch.setattr(profile, "SIDE_BY_SIDE", 4)
    table, written = tmp_path / "t.csv", []
    with pytest.raises(KeyboardInterrupt):
        profile.fill(table, wanted, fake(fails_at=2 + 6), 1, QUICK)  # behind the two calls
    first = {row.probe for row in measured.read(table)}
    assert len(first) == 4
    profile.fill(table, wanted, fake(written), 1, QUICK)
    again = {id(network) for network in written[2:]}
    assert again == {id(piece) for probe, piece in wanted.items() if probe not in first}
    assert {row.probe for row in measured.read(table)} == wanted.keys()
    before = table.read_bytes()
    profile.fill(table, wanted, fake(fails_at=0), 1, QUICK)  # nothing is left to write
    assert table.read_bytes() == before


def test_a_table_of_other_conditions_is_left_as_it_is(wanted, tmp_path):
    table = tmp_path / "t.csv"
    measured.append(table, row_of(next(iter(wanted))))
    with pytest.raises(InputError) as error:
        profile.fill(table, wanted, fake(), 2, QUICK)
    assert str(error.value) == (
        f"{table}: was measured with threads 1, now it is 2; take another table"
    )


def test_the_call_of_the_runtime_is_taken_off(wanted, monkeypatch):
    """A clock by which a call takes 1 s, and each convolution 10 s."""
    now = 0.0

    def load(path, threads):
        def run():
            nonlocal now
            now += 1 + 10 * int(path.read_text())

        return run

    def file(network):
        return str(len(network.convs)).encode()

    runtime = fake_runtime(file, load)
    real = profile.timing.timed
    monkeypatch.setattr(
        profile.timing, "timed", lambda loads, effort: real(loads, effort, clock=lambda: now)
    )
    found = dict(profile.latencies(wanted, runtime, 1, QUICK))
    for probe, piece in wanted.items():
        assert found[probe].latency_ms == pytest.approx(1e4 * len(piece.convs))


@pytest.mark.parametrize("name", ["onnxruntime", "litert"])
def test_the_runtimes_run_pieces_and_networks(name, wanted, int8, tmp_path):
    if name == "litert":
        pytest.importorskip("ai_edge_litert")
    runtime = runtimes.named(name)
    some = dict(list(wanted.items())[:4])
    found = profile.compare({"net": (int8.floats, int8.network)}, runtime, 1, QUICK)
    assert found["runtime"] == name
    figures = found["networks"]["net"]
    ratio = figures["float"]["latency_ms"] / figures["quantized"]["latency_ms"]
    assert figures["ratio"] == pytest.approx(ratio)
    profile.fill(tmp_path / "t.csv", some, runtime, 1, QUICK)
    (row, *_) = measured.read(tmp_path / "t.csv")
    assert (row.runtime, row.runtime_version, row.threads) == (name, runtime.version, 1)


def test_an_unknown_runtime_is_refused_in_one_line():
    with pytest.raises(InputError) as error:
        runtimes.named("tensorrt")
    assert str(error.value) == "--runtime=tensorrt: must be onnxruntime or litert"


def test_files_for_a_board_come_with_what_they_are(wanted, tmp_path):
    profile.write_files(tmp_path, wanted, fake())
    found = board.read_manifest(tmp_path)
    assert list(found.values()) == [*map(board.of_call, board.CALLS), *wanted]
    assert all((tmp_path / name).read_text() for name in found)
    outs = [(tmp_path / name).read_text() for name in found]
    assert outs[2:] == [piece.out.name for piece in wanted.values()]
    (tmp_path / "0001.log").write_text("what the board took")
    with pytest.raises(InputError, match="holds logs of other files"):
        profile.write_files(tmp_path, wanted, fake())


def test_random_subnets_choose_bits_by_block_or_by_layer():
    rng = np.random.default_rng(0)
    for per_layer in (False, True):
        drawn = [probes.random_subnet(rng, SPACE, BITS, per_layer) for _ in range(50)]
        assert all(len(b) == block.depth for s in drawn for b, block in zip(s, BLOCKS, strict=True))
        assert {choice.op for s in drawn for block in s for choice in block} == set(SPACE.ops)
        bits = [{choice[1:] for choice in subnet[0]} for subnet in drawn]
        assert set().union(*bits) == set(BITS)
        assert (max(map(len, bits)) > 1) == per_layer
