"""Ranges of whole networks, and what norms take from a quantized one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import small_network
from qnas_jax.nn import policy
from qnas_jax.nn.trace import trace
from qnas_jax.nn.units import pixels
from qnas_jax.ptq import norms, observe, ranges
from qnas_jax.quant import calibrate

CASE = small_network.make_case(small_network.MIXED)
CASE = CASE._replace(variables=jax.tree.map(jnp.asarray, CASE.variables))
TRACED = trace(CASE.model, small_network.SHAPE)
RUN = jax.jit(CASE.model.apply)
IMAGES = pixels(jnp.asarray(CASE.images))


def error(variables, quant):
    found = RUN({**variables, "quant": quant}, IMAGES) - RUN(CASE.variables, IMAGES)
    return float(jnp.mean(jnp.square(found)))


def with_kind(kind):
    found = ranges.ranges_of(CASE.model, TRACED, CASE.variables, [CASE.images], kind)
    return ranges.with_own(CASE.quant, found)


def test_min_max_ranges_are_those_of_the_outputs_in_float():
    names = [unit.name for unit in ranges.grids(TRACED)]
    found = observe.channel_ranges(CASE.model, CASE.variables, [CASE.images], names)
    quant = with_kind("min_max")
    for name in names:
        low, high = found[name]
        np.testing.assert_allclose(
            policy.output_at(quant, name)["range"], [low.min(), high.max()], rtol=1e-5, atol=1e-6
        )


def test_the_best_ranges_have_no_more_error_than_any_single_kind():
    best = ranges.best(
        CASE.model, TRACED, CASE.variables, CASE.quant, [CASE.images], CASE.variables
    )
    found = error(CASE.variables, best)
    singles = {kind: error(CASE.variables, with_kind(kind)) for kind in calibrate.RANGES}
    assert found < min(singles.values()), singles
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), best, CASE.quant)
    bits = [policy.output_at(best, unit.name)["a_bits"] for unit in ranges.grids(TRACED)]
    assert {int(b) for b in bits} == {4, 6, 8}


def test_corrected_means_are_those_of_the_float_network():
    """The corrected network, quantized, through each unit's own outputs; linear units alone."""
    quant = with_kind("mse")
    new = norms.corrected(CASE.model, CASE.variables, quant, CASE.images, CASE.variables)
    names = [unit.name for unit in TRACED.units if unit.conv and unit.has_grid]
    names = [n for n in names if n.endswith("project") or n == TRACED.units[-1].name]
    images = jnp.asarray(CASE.images)
    some = False
    for name in names:
        plain, ours, old = (
            observe.outputs(CASE.model, read, images, [name])[name].mean((0, 1, 2))
            for read in (
                CASE.variables,
                {**new, "quant": quant},
                {**CASE.variables, "quant": quant},
            )
        )
        leaves = policy.output_at(quant, name)
        step = np.ptp(leaves["range"]) / (2 ** int(leaves["a_bits"]) - 1)
        assert np.abs(plain - ours).max() < 0.5 * step  # rounding to the grid comes after
        some |= bool(np.abs(plain - old).max() > 2 * np.abs(plain - ours).max())
    assert some
    stats = zip(*(jax.tree.leaves(x["batch_stats"]) for x in (CASE.variables, new)), strict=True)
    assert any((a != b).any() for a, b in stats)


@pytest.mark.parametrize("bits", [3, 8])
def test_a_correction_lowers_the_error_of_few_bits(bits):
    names = {unit.name: (bits, bits) for unit in ranges.grids(TRACED)}
    names |= {conv.name: (bits, bits) for conv in TRACED.convs}
    quant = policy.with_policy(CASE.quant, names)
    found = ranges.ranges_of(CASE.model, TRACED, CASE.variables, [CASE.images], "mse")
    quant = ranges.with_ranges(quant, names, found)
    new = norms.corrected(CASE.model, CASE.variables, quant, CASE.images, CASE.variables)
    assert error(new, quant) < (1.05 if bits == 8 else 0.95) * error(CASE.variables, quant)


@pytest.mark.parametrize(
    "shape", [(8, 64, 128, 16), (8, 32, 64, 64), (4, 24, 24, 96), (1, 1, 256, 256)]
)
def test_values_come_from_every_channel(shape):
    channels = np.broadcast_to(np.arange(shape[-1]), shape)
    counts = np.bincount(ranges.some(channels))
    assert len(counts) == shape[-1]
    assert counts.min() > 0.5 * counts.mean()
