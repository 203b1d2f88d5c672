import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.nn import mobilenet, policy
from qnas_jax.nn.deeplab import DeepLabV3
from qnas_jax.nn.trace import trace

FIRST = space.Block(8, 8, 1, 1, 1)
BLOCKS = (space.Block(8, 16, 2, 1, 2), space.Block(16, 16, 1, 2, 1))
PATHS = ((space.Op(3, 6), space.Op(7, 3)), (space.Op(5, 3),))
IMAGE = (33, 47, 3)
SUBNET = (
    (space.Choice(PATHS[0][0], 4, 6), space.Choice(PATHS[0][1], 2, 3)),
    (space.Choice(PATHS[1][0], 5, 7),),
)


@pytest.fixture(scope="module")
def network():
    """A small network and the shapes of its variables."""
    model = DeepLabV3(mobilenet.MobileNetV2(8, FIRST, BLOCKS, PATHS), 4, (2,), 19)
    image = jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32)
    return model, jax.eval_shape(model.init, jax.random.key(0), image)


def _quant(shapes):
    """A policy in which every leaf differs from every other."""
    leaves, structure = jax.tree.flatten(shapes)
    values = [jnp.full(leaf.shape, 100 + i, leaf.dtype) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, values)


def test_with_bits_sets_the_searched_layers_and_nothing_else(network):
    model, variables = network
    quant = _quant(variables["quant"])
    found = policy.with_bits(quant, trace(model, IMAGE), SUBNET)
    assert jax.tree.structure(found) == jax.tree.structure(quant)
    before = jax.tree_util.tree_leaves_with_path(quant)
    searched = 0
    for (path, old), new in zip(before, jax.tree.leaves(found), strict=True):
        encoder, block, layer, *_, leaf = [key.key for key in path] + [""] * 3
        leaf = path[-1].key
        assert new.dtype == old.dtype
        if encoder == "encoder" and block in ("block1", "block2") and leaf != "range":
            choice = SUBNET[int(block[5:]) - 1][int(layer[5:])]
            assert new == getattr(choice, leaf)
            searched += 1
        else:
            np.testing.assert_array_equal(new, old)
    # Three weights and three activations a layer, and the sum of the two that add.
    assert searched == 3 * 6 + 2


def test_the_bits_of_weights_by_the_names_of_the_records(network):
    model, variables = network
    traced = trace(model, IMAGE)
    default = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 8, leaf.dtype), variables["quant"])
    found = policy.w_bits(policy.with_bits(default, traced, SUBNET))
    assert set(found) == {conv.name for conv in traced.convs}
    for name, bits in found.items():
        searched = {"block1/layer0": 4, "block1/layer1": 2, "block2/layer0": 5}
        assert bits == next((b for place, b in searched.items() if place in name), 8)
