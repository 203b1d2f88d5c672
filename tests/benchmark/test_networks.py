"""A masked network is the network of its own ops: outputs, gradients, statistics, bitwidths."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import small_benchmark as small
from qnas_jax.benchmark import distilled, networks, quantized, training
from qnas_jax.nn import policy
from qnas_jax.nn.init import initialize
from qnas_jax.nn.trace import trace
from qnas_jax.nn.units import pixels
from qnas_jax.ptq import observe, ranges
from qnas_jax.quant import calibrate

PLAN = small.PLAN
OWN = networks.classifier(PLAN, tuple(PLAN.space.ops[place] for place in small.MIXED))
SHAPE = (PLAN.size, PLAN.size, 3)
apply = jax.jit(OWN.apply)
find = jax.jit(calibrate.mse)


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-5), a, b)


def test_numbers_name_each_network_once_and_the_last_block_changes_first():
    found = [tuple(networks.ops_of(PLAN, n)) for n in range(PLAN.networks)]
    assert found == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_masked_network_gives_what_its_own_network_gives():
    variables, data = small.trained(), small.images(seed=1)
    masked = jax.jit(networks.widest(PLAN).model.apply)(variables, pixels(data.images))
    close(masked, apply(small.own(variables), pixels(data.images)))


def test_a_masked_network_learns_as_its_own_network_does():
    variables, data = small.trained(), small.images(seed=1)
    ops = jnp.array(small.MIXED, jnp.int32)

    def own_loss(params, stats):
        given = {"params": params, "batch_stats": stats}
        logits, new = OWN.apply(given, pixels(data.images), True, mutable=["batch_stats"])
        each = optax.softmax_cross_entropy_with_integer_labels(logits[:, 0, 0], data.labels)
        return jnp.mean(each), new["batch_stats"]

    def masked_loss(params, stats):
        return training.loss(PLAN, params, stats, ops, pixels(data.images), data.labels)

    def both(loss, given):
        graded = jax.jit(jax.value_and_grad(loss, has_aux=True))
        return graded(given["params"], given["batch_stats"])

    (value, stats), gradients = both(masked_loss, variables)
    (own_value, own_stats), own_gradients = both(own_loss, small.own(variables))
    assert value == pytest.approx(float(own_value), rel=1e-5)
    found = small.own({"params": gradients, "batch_stats": stats})
    close(found, {"params": own_gradients, "batch_stats": own_stats})
    total = sum(float(jnp.sum(jnp.abs(leaf))) for leaf in jax.tree.leaves(gradients))
    kept = sum(float(jnp.sum(jnp.abs(leaf))) for leaf in jax.tree.leaves(own_gradients))
    assert total == pytest.approx(kept, rel=1e-4)  # what is masked gets no gradient


def test_fresh_kernels_have_the_variance_of_their_own_fan_in():
    layer = {
        "expand": {"kernel": jnp.ones((1, 1, 4, 16))},
        "depthwise": {"kernel": jnp.ones((5, 5, 1, 16))},
        "project": {"kernel": jnp.ones((1, 1, 16, 8))},
    }
    found = networks.drawn_layer(PLAN.space, layer, jnp.int32(0))  # k3e2 in k5e4
    assert found["depthwise"]["kernel"][1:4, 1:4, 0, :8] == pytest.approx(5 / 3)
    assert np.count_nonzero(found["depthwise"]["kernel"]) == 3 * 3 * 8
    assert found["project"]["kernel"][0, 0, :8] == pytest.approx(2**0.5)
    assert np.count_nonzero(found["project"]["kernel"]) == np.count_nonzero(
        found["expand"]["kernel"]
    ) + 4 * 8  # fmt: skip


def own_quant(values, bits):
    """A policy of the own network by the project's own means.

    Args:
      values: What each unit gives in float, by name.
      bits: Of each block.
    """
    sites = {unit.name: unit.site for unit in trace(OWN, SHAPE).units}
    by_unit = {
        name: (bits[site.block],) * 2 if site else (8, 8)
        for name, site in sites.items()
        if site or name in values
    }
    found = {}
    for name, x in values.items():
        a_bits = by_unit[name][1]
        found[name] = jnp.zeros((9, 2)).at[a_bits].set(find(x, jnp.int32(a_bits)))
    quant = initialize(OWN, jax.random.key(0), (1, *SHAPE))["quant"]
    return ranges.with_ranges(quant, by_unit, found)


def test_counts_under_all_policies_are_those_of_own_networks_policy_by_policy():
    variables, data = small.trained(), small.images(seed=1)
    calibration = data.images[: PLAN.calibration_images]
    own, right = small.own(variables), []
    logits = apply(own, pixels(data.images))
    data = data._replace(labels=jnp.argmax(logits[:, 0, 0], -1).astype(jnp.int32))
    found = quantized.right(PLAN, variables, calibration, data)
    names = [unit.name for unit in ranges.grids(trace(OWN, SHAPE))]
    values = jax.jit(lambda own: observe.outputs(OWN, own, calibration, names))(own)
    for bits in itertools.product(PLAN.bits, repeat=2):
        logits = apply({**own, "quant": own_quant(values, bits)}, pixels(data.images))
        right.append(int(jnp.sum(jnp.argmax(logits[:, 0, 0], -1) == data.labels)))
    assert found.tolist() == right
    assert len(set(right)) > 1


def test_counts_in_float_are_those_of_the_whole_network():
    variables, data = small.trained(), small.images(seed=1)
    logits = apply(small.own(variables), pixels(data.images))
    assert training.right(PLAN, variables, data) == jnp.sum(
        jnp.argmax(logits[:, 0, 0], -1) == data.labels
    )


def test_a_block_of_the_teacher_has_no_noise_but_that_of_its_bitwidth():
    teacher, data = small.trained((1, 1)), small.images(seed=1)
    block = 1
    learned = {kind: policy.at(held, networks.at_block(block)) for kind, held in teacher.items()}
    rows = distilled.nsr_rows(PLAN, block, teacher, learned, data.images[:8], data.images[:16])
    assert rows[0] == 0
    assert 0 < rows[1] < rows[2]


def test_distilled_ops_are_masked_and_come_closer_to_the_teacher():
    teacher, data = small.trained((1, 1)), small.images(seed=1)
    args = (teacher, data, jnp.int32(0), jax.random.key(0))
    learned = distilled.distill(PLAN, 0, *args)
    assert np.count_nonzero(learned["params"]["depthwise"]["kernel"]) == 3 * 3 * 4 * 2
    rows = distilled.nsr_rows(PLAN, 0, teacher, learned, data.images[:8], data.images[:16])
    assert np.all(np.isfinite(rows))
    assert rows.shape == (1 + len(PLAN.bits),)
