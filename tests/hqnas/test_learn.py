"""Steps of a search on a network of three layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax.hqnas import learn, relax, shared
from qnas_jax.nn import init
from qnas_jax.nn.classifier import Classifier
from qnas_jax.nn.mobilenet import MobileNetV2
from qnas_jax.nn.trace import trace
from qnas_jax.space import Block, Op, Space
from qnas_jax.tasks import classification
from qnas_jax.train import loop

BLOCKS = (Block(8, 8, 2, 1, depth=2), Block(8, 12, 1, 1, depth=1))
OPS = (Op(3, 3), Op(3, 6), Op(5, 6))
STEPS = 4


@pytest.fixture(scope="module")
def case():
    space = Space(BLOCKS, OPS)
    first = Block(8, 8, stride=1, dilation=1, depth=1)
    paths = tuple(tuple(c.op for c in block) for block in shared.widest(space))
    model = Classifier(MobileNetV2(8, first, BLOCKS, paths), head_channels=16, classes=3)
    described = shared.describe(trace(model, (16, 16, 3)), space, (2, 8))
    fresh = init.initialize(model, jax.random.key(0), (1, 16, 16, 3))
    task = classification.task(("a", "b", "c"))
    network = learn.Network(model, described, fresh, task.loss)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (STEPS, 8, 16, 16, 3), np.uint8)
    labels = rng.integers(0, 3, (STEPS, 8))
    layers = jnp.cumsum(jnp.ones((3, 3, 2, 2)), 1)
    bounds = {"latency_ms": relax.Costs(layers, jnp.float32(0), jnp.float32(4))}
    return network, fresh["params"], bounds, (jnp.asarray(images), jnp.asarray(labels))


def run(case, logit_lr, bilevel=False, parts=((0, STEPS),), batches=None):
    network, params, bounds, given = case
    images, labels = batches or given
    how = learn.How(STEPS, 1e-2, logit_lr, (2.0, 0.5), 0.05, 20.0, 0.0)
    how = jax.tree.map(jnp.asarray, how)
    steps = loop.several(
        learn.step(network, relax.RELAXATIONS["sampled"], bilevel), how, bounds, jax.random.key(1)
    )
    state = learn.begin(params, relax.first(network.shared, 0.0), ("latency_ms",))
    state = jax.tree.map(jnp.copy, state)  # the steps reuse its memory
    for start, end in parts:
        part = slice(start, end)
        state, figures = steps(state, images[part], labels[part], jnp.arange(start, end))
    return jax.device_get((state, figures))


def test_weights_learn_alone_in_the_warm_up(case):
    state, figures = run(case, logit_lr=0.0)
    assert all((part == 0).all() for part in state.logits)
    assert state.weights["latency_ms"] == 0
    kernel = state.params["encoder"]["block1"]["layer0"]["depthwise"]["kernel"]
    assert (kernel != case[1]["encoder"]["block1"]["layer0"]["depthwise"]["kernel"]).any()
    assert np.isfinite(figures["loss"]).all()


def test_logits_learn_in_the_search_and_costs_fall(case):
    _, figures = run(case, logit_lr=0.1)
    over = figures["latency_ms_over_budget"]
    assert over[0] > 0.4, "equal probabilities cost 6, the budget is 4"
    assert over[-1] < over[0]
    assert (figures["latency_ms_weight"] > 0).all()


@pytest.mark.slow
def test_a_search_in_two_parts_is_the_same(case):
    whole, _ = run(case, logit_lr=0.1)
    halves, _ = run(case, logit_lr=0.1, parts=((0, 2), (2, STEPS)))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(halves), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_two_levels_learn_on_different_images(case):
    """Other images of the second half change the logits' step, and not that of the weights."""
    images, labels = case[3]
    other = images.at[:, 4:].set(255 - images[:, 4:])
    one = ((0, 1),)
    a, _ = run(case, 0.1, bilevel=True, parts=one)
    b, _ = run(case, 0.1, bilevel=True, parts=one, batches=(other, labels))
    moved = zip(a.logit_optimizer.mu, b.logit_optimizer.mu, strict=True)
    assert any((x != y).any() for x, y in moved)
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_array_equal(x, y)
    c, _ = run(case, 0.1, parts=one)
    assert any(
        (x != y).any()
        for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(c.params), strict=True)
    )


def test_a_state_has_the_types_that_a_step_returns(case):
    """Else the second step would be compiled again, which takes longer than all steps."""
    network, params, bounds, (images, labels) = case
    step = learn.step(network, relax.RELAXATIONS["sampled"], False)
    state = learn.begin(params, relax.first(network.shared, 1.0), ("latency_ms",))
    how = jax.tree.map(jnp.asarray, learn.How(STEPS, 1e-2, 0.1, (2.0, 0.5), 0.05, 20.0, 0.0))
    given = how, bounds, jax.random.key(1), state, images[0], labels[0], jnp.int32(0)
    after, _ = jax.eval_shape(step, *given)

    def types(tree):
        return [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)]

    assert types(after) == types(state)
