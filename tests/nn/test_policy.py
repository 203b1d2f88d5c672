import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.errors import InputError
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


def test_a_policy_by_names_sets_these_units_and_nothing_else(network):
    _, variables = network
    quant = _quant(variables["quant"])
    chosen = {
        "encoder/block1/layer0/expand": (4, 6),
        "encoder/block1/layer1/add": (2, 3),  # has no weights
        "aspp/pool": (5, 7),  # has no grid of its own
    }
    found = policy.with_policy(quant, chosen)
    leaf = found["encoder"]["block1"]["layer0"]["expand"]
    assert (leaf["w_bits"], leaf["out"]["a_bits"]) == (4, 6)
    assert found["encoder"]["block1"]["layer1"]["add"]["a_bits"] == 3
    assert found["aspp"]["pool"]["w_bits"] == 5
    changed = jax.tree.map(lambda old, new: bool(np.any(old != new)), quant, found)
    assert sum(jax.tree.leaves(changed)) == 4
    for old, new in zip(jax.tree.leaves(quant), jax.tree.leaves(found), strict=True):
        assert new.dtype == old.dtype


def test_policies_may_be_vmapped(network):
    quant = _quant(network[1]["quant"])
    name, bits = "encoder/stem", jnp.array([[8, 8], [2, 8], [8, 2]])

    def run(pair):
        found = policy.with_policy(quant, {name: (pair[0], pair[1])})
        return policy.at(found, name)["w_bits"], policy.output_at(found, name)["a_bits"]

    w_bits, a_bits = jax.jit(jax.vmap(run))(bits)
    np.testing.assert_array_equal(np.stack([w_bits, a_bits], 1), bits)


@pytest.mark.parametrize(
    "name", ["encoder/stim", "aspp/broadcast", "encoder", "encoder/stem/w_bits"]
)
def test_a_name_without_bitwidths_is_refused(network, name):
    _, variables = network
    message = f"^'{name}': has no bitwidths; the units of a network are trace"
    with pytest.raises(ValueError, match=message):
        policy.with_policy(_quant(variables["quant"]), {name: (4, 4)})


@pytest.mark.parametrize(("bits", "wrong"), [((9, 8), "w_bits=9"), ((8, 1), "a_bits=1")])
def test_bitwidths_out_of_range_are_refused(network, bits, wrong):
    _, variables = network
    with pytest.raises(InputError, match=rf"'encoder/stem': {wrong}: bitwidths lie in \[2, 8\]"):
        policy.with_policy(_quant(variables["quant"]), {"encoder/stem": bits})
