"""Learned scales of whole networks: what they begin as, what they learn, what is written."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax.export import fold, interpret, simulate
from qnas_jax.nn import policy
from qnas_jax.nn.trace import trace
from qnas_jax.nn.units import pixels
from qnas_jax.tasks import segmentation
from qnas_jax.train import distillation, learned, optimizers, supervised
from qnas_jax.train.distillation import Distillation
from small_network import SHAPE, make_case


def of_image(logits, labels):
    """The mean cross-entropy of the mean logits; labels have one class an image."""
    likely = jax.nn.log_softmax(jnp.mean(logits, (1, 2)), -1)
    return -jnp.mean(jnp.take_along_axis(likely, labels[:, None], 1))


@pytest.fixture(scope="module")
def case():
    """The network with 4-bit blocks, its parameters with steps, and `quantize`."""
    made = make_case(((4, 4),) * 2)
    traced = trace(made.model, SHAPE)
    variables, quant = jax.tree.map(jnp.asarray, (dict(made.variables), dict(made.quant)))
    params = learned.begin(traced, variables["params"], quant)
    return made, traced, variables, quant, params, functools.partial(learned.quantize, traced)


def output(made, read, variables, images):
    read = {**read, "batch_stats": variables["batch_stats"]}
    return jax.jit(made.model.apply)(read, pixels(jnp.asarray(images)))


def test_it_begins_as_the_network_without_training(case):
    made, _, variables, quant, params, quantize = case
    found = output(made, quantize(params, quant), variables, made.images)
    expected = output(made, {**variables, "quant": quant}, variables, made.images)
    # The steps of ranges are rounded once more, so a value near a tie may get another code.
    assert np.mean(np.abs(found - expected) > 1e-3) < 0.02


def test_what_is_trained_is_what_is_evaluated_bit_for_bit(case):
    made, _, variables, quant, params, quantize = case
    read = quantize(params, quant)
    settled = {**read, "quant": learned.with_fixed_ranges(read["quant"])}
    assert "learned_range" not in str(jax.tree.structure(settled))
    np.testing.assert_array_equal(
        output(made, read, variables, made.images), output(made, settled, variables, made.images)
    )


@pytest.fixture(scope="module")
def trained(case):
    """The steps of a training, its first state and its last, and the losses."""
    made, _, variables, quant, params, quantize = case
    optimizer = optimizers.sgd(0.01, 30, 1.0, 0.9, 0.0)
    step = supervised.policy_step(made.model, of_image, optimizer, jax.random.key(0), quantize)
    first = supervised.fresh_state({**variables, "params": params}, optimizer)
    labels, losses, state = jnp.array([0, 1, 2]), [], first
    for number in range(30):
        state, found = step(quant, state, jnp.asarray(made.images), labels, jnp.int32(number))
        losses.append(float(found["loss"]))
    return step, first, state, losses


def test_weights_and_all_steps_learn(trained):
    _, first, state, losses = trained
    assert losses[-1] < 0.5 * losses[0]
    for kind in ("weights", "activations"):
        before, after = first.params["steps"][kind], state.params["steps"][kind]
        moved = [name for name in before if np.any(np.asarray(before[name] != after[name]))]
        # Only the idle channel of the first projection's norm, and what nobody reads, may rest.
        assert len(moved) >= len(before) - 1


def test_files_have_the_learned_scales_and_compute_what_was_trained(case, trained):
    made, *_, quantize = case
    quant = case[3]
    state = trained[2]
    read = quantize(state.params, quant)
    policy_ = learned.with_fixed_ranges(read["quant"])
    final = {"params": read["params"], "batch_stats": state.batch_stats}
    graph = fold.fold(made.model, final, policy_, SHAPE, resize=True)
    idle = 0
    for conv in graph.convs:
        scale = policy.at(policy_, conv.out.name)["w_scale"]
        factor = np.abs(fold._affine(final, conv.out.name)[0])
        same = conv.w_scale == (np.asarray(scale, np.float64) * factor).astype(np.float32)
        idle += np.sum(~same)
        codes = np.rint(
            np.asarray(policy.at(final["params"], conv.out.name)["kernel"]) / np.asarray(scale)
        )
        most = 2 ** (int(policy.at(policy_, conv.out.name)["w_bits"]) - 1) - 1
        np.testing.assert_array_equal(
            np.abs(conv.weights)[..., same], np.abs(np.clip(codes, -most, most))[..., same]
        )
    assert idle <= len(graph.convs)  # the channel whose norm has a scale of zero
    computed = np.asarray(simulate.simulator(graph)(made.images))
    by_hand = interpret.run(graph, made.images)[graph.out.name][..., 0]
    np.testing.assert_array_equal(computed, by_hand)
    rounded = {**fold.with_bias_codes(final, graph), "quant": policy_}
    classes = supervised.predictor(made.model, segmentation.predict)(rounded, made.images)
    assert np.mean(np.asarray(classes) == computed) > 0.999


def test_one_program_trains_several_policies_at_once(case, trained):
    made, traced, variables, quant, *_ = case
    other = policy.with_policy(quant, {u.name: (6, 8) for u in traced.units if u.site})
    each = [learned.begin(traced, variables["params"], q) for q in (quant, other)]
    step, first = trained[:2]
    states = [first._replace(params=p) for p in each]
    images, labels = jnp.asarray(made.images), jnp.array([0, 1, 2])
    alone = [
        step(q, s, images, labels, jnp.int32(0))
        for q, s in zip((quant, other), states, strict=True)
    ]
    assert step._cache_size() == 1  # bitwidths are data
    both = jax.vmap(step, (0, 0, None, None, None))(
        *(jax.tree.map(lambda *x: jnp.stack(x), *pair) for pair in ((quant, other), states)),
        images, labels, jnp.int32(0),
    )  # fmt: skip
    for number, (state, figures) in enumerate(alone):
        np.testing.assert_allclose(both[1]["loss"][number], figures["loss"], rtol=1e-4)
        found = jax.tree.map(lambda x, n=number: x[n], both[0].params["steps"])
        for a, b in zip(
            jax.tree.leaves(found), jax.tree.leaves(state.params["steps"]), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-6)


def test_frozen_norms_keep_their_statistics_and_use_them(case):
    made, _, variables, quant, params, quantize = case
    optimizer = optimizers.sgd(0.0, 3, 1.0, 0.0, 0.0)
    step = supervised.policy_step(
        made.model, of_image, optimizer, jax.random.key(0), quantize, frozen=True
    )
    first = supervised.fresh_state({**variables, "params": params}, optimizer)
    labels = jnp.array([0, 1, 2])
    state, found = step(quant, first, jnp.asarray(made.images), labels, jnp.int32(0))
    for a, b in zip(
        jax.tree.leaves(first.variables()), jax.tree.leaves(state.variables()), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    logits = output(made, quantize(params, quant), variables, made.images)
    np.testing.assert_allclose(found["loss"], of_image(logits, labels), rtol=1e-4)


def test_distillation_adds_its_terms_to_the_loss(case):
    made, _, variables, quant, params, quantize = case
    optimizer = optimizers.sgd(0.0, 3, 1.0, 0.0, 0.0)
    terms = {"logits": 0.5, "features": 2.0}
    step = supervised.policy_step(
        made.model, of_image, optimizer, jax.random.key(0), quantize,
        distill=Distillation(made.model, terms), frozen=True,
    )  # fmt: skip
    first = supervised.fresh_state({**variables, "params": params}, optimizer)
    labels, images = jnp.array([0, 1, 2]), jnp.asarray(made.images)
    _, found = step((quant, variables), first, images, labels, jnp.int32(0))
    run = jax.jit(lambda v, x: distillation.applied(made.model, v, pixels(x))[0])
    ours = run({**quantize(params, quant), "batch_stats": variables["batch_stats"]}, images)
    expected = of_image(ours.logits, labels) + distillation.loss(
        ours, run(variables, images), terms
    )
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-3)
