"""Checks with all pairs of codes that ONNX Runtime and LiteRT agree on sums."""

import jax
import numpy as np
import pytest

from qnas_jax.export import fold, graph, runtimes, tie_free
from qnas_jax.export.graph import ConvNode, Graph, QParams, Tensor
from qnas_jax.quant import affine

SHAPE = (256, 256, 1)
EVERY = np.stack(np.meshgrid(*[np.arange(256)] * 2, indexing="ij"), -1).astype(np.uint8)[None]


def copied(name, grid, channel):
    """Maps the bytes of a channel to the codes of a grid."""
    weights = np.zeros((1, 1, 2, 1), np.int8)
    weights[0, 0, channel] = 1
    bias = np.array([-grid.zero_point], np.int32)
    scale = np.array([grid.scale], np.float32)
    how = (1, 1, 1, (-np.inf, np.inf), 8, scale, bias)
    return ConvNode(Tensor(name, SHAPE, grid), "x", weights, bias * scale, *how)


def grid_of(leaves):
    scale, zero_point, _ = jax.jit(affine.asymmetric_grid)(leaves["range"], leaves["a_bits"])
    return QParams(float(scale), int(zero_point), int(leaves["a_bits"]))


def sums(quant):
    """Two sums; the second reads the first."""
    first, second, total, last = (grid_of(quant[name]) for name in ("a", "b", "sum", "last"))
    nodes = (
        copied("a", first, 0),
        copied("b", second, 1),
        graph.Add(Tensor("sum", SHAPE, total), ("a", "b")),
        graph.Add(Tensor("last", SHAPE, last), ("a", "sum")),
    )
    return Graph(Tensor("x", (256, 256, 2), QParams(1.0, 0, 8)), nodes)


def drawn(seed, bits=8):
    """Random ranges, as calibration may find them."""
    rng = np.random.default_rng(seed)
    quant, width = {}, rng.uniform(2, 20)
    for name in ("a", "b", "sum", "last"):
        ends = np.array([-rng.uniform(0.3, 1), rng.uniform(0.3, 1)]) * width
        width *= rng.uniform(0.8, 1.4)
        quant[name] = {"range": ends.astype(np.float32), "a_bits": np.int32(bits)}
    return quant


def computed(network, name):
    """Outputs of a runtime for all pairs of bytes."""
    found = runtimes.named(name).tensors(network, EVERY)
    return [found[node.out.name] for node in network.nodes]


def differ(network):
    pair = [computed(network, name) for name in ("onnxruntime", "litert")]
    return sum(int(np.count_nonzero(a != b)) for a, b in zip(*pair, strict=True))


def test_runtimes_agree_after_ranges_are_widened():
    """Runs both runtimes, on draws for which they differ before."""
    pytest.importorskip("ai_edge_litert", reason="pip install -e '.[litert]'")
    apart = [seed for seed in range(12) if differ(sums(drawn(seed)))]
    assert len(apart) >= 3
    for seed in apart:
        quant = drawn(seed)
        agreed = tie_free.with_agreed_sums(sums(quant), quant)
        assert differ(sums(agreed)) == 0
        for name in ("a", "b"):
            np.testing.assert_array_equal(agreed[name]["range"], quant[name]["range"])
        for name in ("sum", "last"):
            np.testing.assert_allclose(agreed[name]["range"], quant[name]["range"], rtol=1e-5)
        assert agreed["sum"]["a_bits"] == 8


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_no_pair_differs_for_any_draw(bits):
    for seed in range(20):
        quant = drawn(seed, bits)
        network = sums(tie_free.with_agreed_sums(sums(quant), quant))
        tensors = network.tensors()
        for node in network.nodes[2:]:
            grids = [tensors[name].grid for name in node.inputs]
            assert tie_free.pairs_that_differ(grids, node.out.grid) == 0


def test_the_range_with_the_fewest_pairs_is_used_if_some_remain(monkeypatch):
    """A finished training must not fail because of one pair."""

    def pairs(inputs, out):
        return abs(out.scale / scale - 1 - 3 * tie_free.STEP) / tie_free.STEP + 1

    quant = drawn(0)
    scale = grid_of(quant["sum"]).scale
    monkeypatch.setattr(tie_free, "pairs_that_differ", pairs)
    agreed = tie_free.with_agreed_sums(sums(quant), quant)
    assert grid_of(agreed["sum"]).scale == pytest.approx(scale * (1 + 3 * tie_free.STEP), rel=1e-7)


def test_a_whole_network_gets_the_widened_ranges(int8):
    """The grids computed in advance equal those of the exported network."""
    quant = tie_free.with_agreed_sums(int8.network, int8.quant)
    network = fold.fold(int8.model, int8.variables, quant, int8.network.x.shape, resize=True)
    tensors = network.tensors()
    adds = [node for node in network.nodes if isinstance(node, graph.Add)]
    assert adds
    for node in adds:
        grids = [tensors[name].grid for name in node.inputs]
        assert tie_free.pairs_that_differ(grids, node.out.grid) == 0
    same = {name for name, tensor in tensors.items() if int8.network.tensors()[name] == tensor}
    assert set(tensors) - same <= {node.out.name for node in adds}
