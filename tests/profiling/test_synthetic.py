"""Made-up networks are those that real ones fold to, and come apart at the layers."""

import dataclasses

import numpy as np
import pytest

from qnas_jax.export import graph, interpret
from qnas_jax.nn.trace import trace
from qnas_jax.profiling import slices, synthetic
from small_network import BLOCKS, INT8, MIXED, PATHS, SHAPE


def bits_of(pairs):
    return [[pair] * len(path) for pair, path in zip(pairs, PATHS, strict=True)]


def shape_of(node):
    """All of a node but its numbers."""
    found = {"kind": type(node).__name__, "out": node.out[:2], "inputs": node.inputs}
    found["grid"] = node.out.grid and node.out.grid.bits
    if isinstance(node, graph.ConvNode):
        names = ("stride", "dilation", "groups", "bounds", "w_bits")
        found |= {name: getattr(node, name) for name in names}
        found["weights"] = (node.weights.shape, node.weights.dtype)
        found["codes"] = node.bias_codes is not None and node.bias_codes.dtype
    return found


@pytest.mark.parametrize(("name", "pairs"), [("int8", INT8), ("mixed", MIXED)])
def test_made_up_networks_differ_from_folded_ones_by_their_numbers_alone(name, pairs, request):
    case = request.getfixturevalue(name)
    made = synthetic.network(trace(case.model, SHAPE), bits_of(pairs))
    assert [shape_of(node) for node in made.nodes] == [shape_of(n) for n in case.network.nodes]
    assert made.x == case.network.x


def test_so_do_those_in_float(int8):
    made = synthetic.network(trace(int8.model, SHAPE), None)
    assert [shape_of(node) for node in made.nodes] == [shape_of(n) for n in int8.floats.nodes]
    assert made.x == int8.floats.x


def test_the_seed_decides_the_weights(int8):
    first, same, other = (
        synthetic.network(trace(int8.model, SHAPE), bits_of(INT8), seed).convs[0].weights
        for seed in (0, 0, 1)
    )
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_codes_of_made_up_networks_do_not_saturate(int8):
    network = synthetic.network(trace(int8.model, SHAPE), bits_of(INT8))
    values = interpret.run(network, int8.images)
    for node in network.convs:
        codes = values[node.out.name]
        assert 0.02 < np.mean((codes > 0) & (codes < 255)), node.out.name


def test_the_pieces_are_the_network(mixed):
    parts = slices.layers(mixed.network)
    places = [
        f"block{b + 1}/layer{n}" for b, block in enumerate(BLOCKS) for n in range(block.depth)
    ]
    assert list(parts) == ["stem", *places, "head"]
    whole = slices.chained(list(parts.values()))
    assert whole.x == mixed.network.x
    assert all(a is b for a, b in zip(whole.nodes, mixed.network.nodes, strict=True))


def test_a_piece_computes_what_it_does_inside_of_the_network(mixed):
    values = interpret.run(mixed.network, mixed.images)
    for part in slices.layers(mixed.network).values():
        alone = interpret.run(part, values[part.x.name])
        assert np.array_equal(alone[part.out.name], values[part.out.name])


def test_the_calls_are_one_convolution_and_two():
    once, twice = synthetic.calls().values()
    assert (len(once.nodes), len(twice.nodes)) == (1, 2)
    fields = [f.name for f in dataclasses.fields(graph.ConvNode) if f.name not in ("out", "x")]
    a, b = once.nodes[0], twice.nodes[0]
    assert all(np.array_equal(getattr(a, name), getattr(b, name)) for name in fields)
