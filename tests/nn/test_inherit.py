"""Ops made from the teacher's layers: the same functions where they are large enough."""

import jax
import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.nn import inherit, supernet
from qnas_jax.nn.mbconv import BlockPath

DEPTH = 2
BLOCK = space.Block(in_channels=8, channels=12, stride=2, dilation=1, depth=DEPTH)
OWN = space.Op(kernel=5, expansion=3)  # the teacher's
OPS = tuple(space.Op(kernel, expansion) for kernel in (3, 5, 7) for expansion in (1, 2, 3, 4))
X = jax.random.normal(jax.random.key(0), (4, 9, 12, 8))


def random(depth, ops, seed):
    """Parameters of a block without zeros and ones among them."""
    block = space.Block(8, 12, 2, 1, depth)
    drawn = supernet.init_block(jax.random.key(seed), block, ops)
    leaves, tree = jax.tree.flatten(drawn)
    keys = jax.random.split(jax.random.key(seed + 100), len(leaves))
    pairs = zip(keys, leaves, strict=True)
    return jax.tree.unflatten(
        tree, [leaf + 0.1 * jax.random.normal(key, leaf.shape) for key, leaf in pairs]
    )


@pytest.fixture(scope="module")
def teacher():
    return supernet.path_params(random(DEPTH, (OWN,), 1), (OWN,) * DEPTH)


@pytest.fixture(scope="module")
def drawn():
    return random(DEPTH, OPS, 2)


@pytest.fixture(scope="module")
def made(drawn, teacher):
    return inherit.block_params(drawn, teacher)


def output(params, path):
    """Of a path of the block, with the batch's own statistics."""
    variables = {"params": params}
    return BlockPath(BLOCK, path).apply(variables, X, train=True, mutable=["batch_stats"])[0]


@pytest.mark.parametrize("op", [op for op in OPS if op.kernel >= 5 and op.expansion >= 3], ids=str)
def test_ops_that_are_large_enough_begin_as_the_teachers_function(made, teacher, op):
    path = (op,) * DEPTH
    found = output(supernet.path_params(made, path), path)
    np.testing.assert_allclose(found, output(teacher, (OWN,) * DEPTH), atol=2e-5)


def test_smaller_ops_are_the_middle_of_the_kernels_and_the_channels_that_matter(made, teacher):
    for layer in ("layer0", "layer1"):
        whole, part = (jax.tree.map(np.asarray, p[layer]) for p in (teacher, made))
        part = part["k3e2"]
        project = whole["project"]["kernel"][0, 0]
        share = [
            sum((whole["depthwise"]["norm"]["scale"][channel] * weight) ** 2 for weight in row)
            for channel, row in enumerate(project)
        ]
        hidden = part["project"]["kernel"].shape[2]
        kept = sorted(sorted(range(len(share)), key=lambda channel: -share[channel])[:hidden])
        assert kept != list(range(hidden))
        same = np.testing.assert_array_equal
        same(part["expand"]["kernel"], whole["expand"]["kernel"][..., kept])
        same(part["depthwise"]["kernel"], whole["depthwise"]["kernel"][1:4, 1:4][..., kept])
        same(part["project"]["kernel"], whole["project"]["kernel"][:, :, kept])
        for unit in ("expand", "depthwise"):
            for name in ("scale", "bias"):
                same(part[unit]["norm"][name], whole[unit]["norm"][name][kept])
        jax.tree.map(same, part["project"]["norm"], whole["project"]["norm"])


def test_channels_that_the_teacher_lacks_are_drawn_and_not_read_yet(made, drawn, teacher):
    ours, fresh, whole = (p["layer1"] for p in (made, drawn, teacher))
    ours, fresh = ours["k7e4"], fresh["k7e4"]
    hidden = whole["project"]["kernel"].shape[2]
    assert not np.asarray(ours["project"]["kernel"][:, :, hidden:]).any()
    for unit in ("expand", "depthwise"):
        np.testing.assert_array_equal(
            ours[unit]["kernel"][..., hidden:], fresh[unit]["kernel"][..., hidden:]
        )


def test_what_the_teacher_has_not_stays_as_drawn(drawn, teacher):
    deeper = random(DEPTH + 1, OPS, 3)
    made = inherit.block_params(deeper, teacher)
    assert made["layer2"] == deeper["layer2"]
    assert made["layer0"]["k5e1"] == deeper["layer0"]["k5e1"], "has no first convolution"
