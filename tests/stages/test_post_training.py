"""All methods of post-training quantization together, on a small network of all kinds of units."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import small_network
from qnas_jax.export import fold, interpret, simulate
from qnas_jax.nn import policy
from qnas_jax.nn.trace import trace
from qnas_jax.nn.units import pixels
from qnas_jax.ptq import norms
from qnas_jax.run import recipes
from qnas_jax.stages import methods, post_training

CASE = small_network.make_case(small_network.INT8)
TRACED = trace(CASE.model, small_network.SHAPE)
IMAGES = [CASE.images]
# Norms that fit the images, as after a training.
SEEN = jnp.asarray(CASE.images)
VARIABLES = jax.tree.map(jnp.asarray, CASE.variables)
VARIABLES |= {"batch_stats": norms.settled(CASE.model, VARIABLES, SEEN)}
RUN = jax.jit(CASE.model.apply)


def fresh(bits):
    zero = policy.with_policy(
        CASE.quant, {u.name: (bits, bits) for u in TRACED.units if u.site is not None}
    )
    for unit in TRACED.units:
        leaves = policy.output_at(zero, unit.name)
        if "range" in leaves and getattr(unit.module, "fixed", None) is None:
            leaves["range"] = jnp.zeros(2)
    return zero


def quantized(bits, per_channel=True, **settings):
    how = dataclasses.replace(recipes.Quantize(), **settings)
    return post_training.quantized(
        CASE.model, TRACED, VARIABLES, fresh(bits), IMAGES, how, jax.random.key(0), per_channel
    )


def error(variables, quant):
    images = pixels(jnp.asarray(CASE.images))
    plain, found = RUN(VARIABLES, images), RUN({**variables, "quant": quant}, images)
    return float(jnp.mean(jnp.square(found - plain)))


def test_without_a_method_a_network_is_calibrated_as_published():
    how = recipes.Quantize()
    variables, quant = post_training.quantized(
        CASE.model, TRACED, CASE.variables, fresh(8), IMAGES, how, jax.random.key(0)
    )
    jax.tree.map(np.testing.assert_array_equal, variables, CASE.variables)
    found = {
        n: policy.output_at(quant, n)["range"] for n in (u.name for u in TRACED.units if u.has_grid)
    }
    for name, range_ in found.items():
        expected = policy.output_at(CASE.quant, name)["range"]
        np.testing.assert_allclose(range_, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_all_methods_together_have_far_less_error_at_four_bits():
    plain, best = error(*quantized(4)), error(*quantized(4, **methods.METHODS["best"]))
    every = quantized(4, **{**methods.METHODS["mse+rounding+biases"], "rounding_steps": 60})
    assert best < 0.9 * plain
    assert error(*every) < 0.8 * best
    graph = fold.fold(CASE.model, *every, small_network.SHAPE, resize=True)
    expected = interpret.run(graph, CASE.images)[graph.out.name]
    np.testing.assert_array_equal(simulate.simulator(graph)(CASE.images), expected[..., 0])


@pytest.mark.slow
def test_with_one_scale_a_layer_the_error_is_larger_and_methods_make_it_smaller():
    per_tensor = {"per_channel": False, "ranges": "mse"}
    plain = error(*quantized(4, **per_tensor))
    assert error(*quantized(4, ranges="mse")) < plain
    every = quantized(4, **per_tensor, weight_ranges="mse", rounding_steps=60, biases=True)
    assert error(*every) < 0.8 * plain
    graph = fold.fold(CASE.model, *every, small_network.SHAPE, resize=True)
    assert all(np.ptp(conv.w_scale) == 0 for conv in graph.convs)


@pytest.mark.parametrize("name", methods.METHODS)
def test_only_methods_that_change_weights_are_kept_apart(name):
    how = dataclasses.replace(recipes.Quantize(), **methods.METHODS[name])
    how.check()
    only_ranges = set(methods.METHODS[name]) == {"ranges"}
    assert post_training.changes_weights(how) == (not only_ranges)


def test_norms_and_biases_are_not_corrected_twice():
    with pytest.raises(ValueError, match="not together"):
        recipes.Quantize(norms=True, biases=True).check()


def test_a_table_has_a_line_for_each_method():
    choices = (8, 8), (4, 8)
    found = {methods.name_of(m, b): 10.0 * b[0] for m in ("min_max", "kl") for b in choices}
    text = methods.as_text({**found, methods.FLOAT: 99.0}, ["min_max", "kl"], choices)
    assert [line.split() for line in text.splitlines()] == [
        ["w8a8", "w4a8"],
        ["min_max", "80.00", "40.00"],
        ["kl", "80.00", "40.00"],
        ["float", "99.00"],
    ]
