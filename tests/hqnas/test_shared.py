"""Shared weights: every subnet within the widest one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.hqnas import shared
from qnas_jax.nn import init, policy
from qnas_jax.nn.classifier import Classifier
from qnas_jax.nn.mobilenet import MobileNetV2, teacher_paths
from qnas_jax.nn.trace import trace
from qnas_jax.quant import nested
from qnas_jax.space import Block, Choice, Op, Space

OPS = tuple(Op(k, e) for k in (3, 5) for e in (3, 6))
BITS = (2, 4, 8)
BLOCKS = (Block(8, 8, 2, 1, depth=2), Block(8, 12, 1, 1, depth=1))
SHAPE = (16, 16, 3)
SUBNET = (
    (Choice(Op(3, 3), 4, 2), Choice(Op(5, 3), 2, 8)),
    (Choice(Op(3, 6), 8, 4),),
)


def network(paths):
    first = Block(8, 8, stride=1, dilation=1, depth=1)
    return Classifier(MobileNetV2(8, first, BLOCKS, paths), head_channels=16, classes=5)


def of_subnet(subnet):
    return network(tuple(tuple(c.op for c in block) for block in subnet))


def fresh(model, seed=0):
    return init.initialize(model, jax.random.key(seed), (1, *SHAPE))


def on_batch(model, variables, x):
    """Logits with norms of the batch's own statistics."""
    stats = init.initialize(model, jax.random.key(0), (1, *SHAPE))["batch_stats"]
    read = {**variables, "batch_stats": stats}
    return jax.jit(functools.partial(model.apply, mutable=["batch_stats"]))(read, x)[0]


@pytest.fixture(scope="module")
def case():
    widest = shared.widest(Space(BLOCKS, OPS))
    model = of_subnet(widest)
    described = shared.describe(trace(model, SHAPE), Space(BLOCKS, OPS), BITS)
    return model, described, fresh(model), jax.random.normal(jax.random.key(9), (6, *SHAPE))


def test_layers_and_units_are_found(case):
    _, described, _, _ = case
    assert described.layers == (
        "encoder/block1/layer0", "encoder/block1/layer1", "encoder/block2/layer0",
    )  # fmt: skip
    units = [name for name, layer in described.units.items() if layer == 1]
    parts = ("expand", "depthwise", "project", "add")
    assert units == [f"encoder/block1/layer1/{part}" for part in parts]


def test_a_subnet_survives_its_one_hot_form(case):
    _, described, _, _ = case
    assert shared.subnet_of(described, shared.one_hot(described, SUBNET)) == SUBNET


def transformed(described, params):
    """Parameters with random transforms of the smaller kernels."""
    params = shared.with_transforms(described, params)
    for path in described.layers:
        matrix = policy.at(params, path)[shared.TRANSFORM]
        matrix["k3"] = jax.random.normal(jax.random.key(len(path)), (9, 9))
    return params


@pytest.mark.parametrize("given", [lambda _, params: params, transformed])
def test_a_choice_computes_what_the_subnets_own_network_computes(case, given):
    """The reference is the subnet's Flax module with cut, then rounded weights."""
    model, described, variables, x = case
    shares = shared.one_hot(described, SUBNET)
    params = given(described, variables["params"])
    read = shared.chosen(described, variables["quant"], params, shares)
    found = on_batch(model, {"params": read["params"]}, x)

    own = of_subnet(SUBNET)
    params = shared.cut(described, params, SUBNET)
    expected_shapes = jax.tree.map(jnp.shape, fresh(own)["params"])
    assert jax.tree.map(jnp.shape, params) == expected_shapes
    choices = [choice for block in SUBNET for choice in block]
    for path, choice in zip(described.layers, choices, strict=True):
        layer = params
        for part in path.split("/"):
            layer = layer[part]
        for part in shared.PARTS:
            kernel = layer[part]["kernel"]
            layer[part]["kernel"] = nested(kernel, jnp.int32(choice.w_bits))
    np.testing.assert_allclose(found, on_batch(own, {"params": params}, x), rtol=1e-3, atol=1e-4)


def test_transforms_begin_as_the_middle_and_learn(case):
    _, described, variables, _ = case
    shares = shared.one_hot(described, SUBNET)
    params = shared.with_transforms(described, variables["params"])
    plain, found = (
        shared.chosen(described, variables["quant"], p, shares)["params"]
        for p in (variables["params"], params)
    )
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)

    def total(params):
        read = shared.chosen(described, variables["quant"], params, shares)["params"]
        return jnp.sum(jnp.square(policy.at(read, described.layers[0])["depthwise"]["kernel"]))

    layer = policy.at(jax.grad(total)(params), described.layers[0])
    assert (np.abs(layer[shared.TRANSFORM]["k3"]) > 0).any()


def test_a_mixture_weights_kernels_and_channels(case):
    """The project's kernel, as it is rounded at 8 bits, is that of the mean of the ops."""
    _, described, variables, _ = case
    logits = shared.Shares(*(jax.random.normal(jax.random.key(i), (3, n)) for i, n in
                             enumerate((4, 3, 3))))  # fmt: skip
    shares = shared.Shares(*map(jax.nn.softmax, logits))
    shares = shares._replace(w=jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0]), (3, 3)))
    read = shared.mixed(described, variables["quant"], variables["params"], shares)
    path = described.layers[0]
    kernel = np.asarray(policy.at(variables["params"], path)["project"]["kernel"])
    op = np.asarray(shares.op[0])
    half = op[[i for i, o in enumerate(OPS) if o.expansion == 3]].sum()
    expected = kernel.copy()
    expected[:, :, kernel.shape[2] // 2 :] *= 1 - half
    expected = nested(jnp.asarray(expected), jnp.int32(8))
    found = policy.at(read["params"], path)["project"]["kernel"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_activations_of_a_layer_have_few_values(case):
    model, described, variables, x = case
    shares = shared.one_hot(described, SUBNET)
    read = shared.chosen(described, variables["quant"], variables["params"], shares)
    read["batch_stats"] = variables["batch_stats"]
    how = {"capture_intermediates": True, "mutable": ["intermediates"]}
    kept = jax.jit(functools.partial(model.apply, **how))(read, x)[1]["intermediates"]["encoder"]
    first = kept["block1"]["layer0"]["depthwise"]["out"]["__call__"][0]
    last = kept["block1"]["layer1"]["add"]["__call__"][0]
    assert len(np.unique(first)) <= 4, "2 bits"
    assert len(np.unique(last)) > 16, "8 bits"


def test_no_choice_compiles_again_and_all_logits_learn(case):
    model, described, variables, x = case

    @jax.jit
    def loss(shares):
        read = shared.chosen(described, variables["quant"], variables["params"], shares)
        return jnp.mean(jnp.square(on_batch_inside(model, read, variables, x)))

    gradient = jax.jit(jax.grad(loss))
    for bits in (2, 8):
        subnet = tuple(tuple(Choice(OPS[bits % 4], bits, bits) for _ in b) for b in SUBNET)
        found = gradient(shared.one_hot(described, subnet))
    assert gradient._cache_size() == 1
    for part in found:
        assert np.isfinite(part).all()
        assert (np.abs(part).sum(1) > 0).all()


def on_batch_inside(model, read, variables, x):
    read = {**read, "batch_stats": variables["batch_stats"]}
    return model.apply(read, x, mutable=["batch_stats"])[0]


def test_it_begins_as_the_teacher(case):
    model, described, variables, x = case
    teacher = network(teacher_paths(BLOCKS))
    given = fresh(teacher, seed=4)["params"]
    params = shared.from_teacher(described, variables["params"], given)
    found = on_batch(model, {"params": params}, x)
    np.testing.assert_allclose(found, on_batch(teacher, {"params": given}, x), rtol=1e-3, atol=1e-4)
    layer = params["encoder"]["block1"]["layer0"]
    importance = np.sum(np.square(layer["project"]["kernel"][0, 0]), 1)
    assert (np.diff(importance) <= 1e-6).all(), "the most important channels come first"


def test_the_largest_op_holds_all():
    assert space.largest_op((Op(7, 3), Op(3, 6))) == Op(7, 6)
    assert shared.widest(Space(BLOCKS, OPS))[0][0] == space.Choice(Op(5, 6), 8, 8)
