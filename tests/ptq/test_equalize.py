"""Equalized networks, against the network as it was, and against what the paper promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import small_network
from qnas_jax.nn.policy import at
from qnas_jax.nn.trace import trace
from qnas_jax.nn.units import pixels
from qnas_jax.ptq import equalize, observe

CASE = small_network.make_case(small_network.INT8)
TRACED = trace(CASE.model, small_network.SHAPE)
PAIRS = equalize.pairs(TRACED)


@pytest.fixture(scope="module")
def case():
    """Channels of very different ranges, such as training leaves them."""
    rng = np.random.default_rng(1)

    def uneven(path, leaf):
        if path[-1].key == "scale":
            return leaf * np.exp(rng.normal(0, 1.0, leaf.shape)).astype(np.float32)
        return leaf

    params = jax.tree_util.tree_map_with_path(uneven, CASE.variables["params"])
    variables = {**CASE.variables, "params": params}
    names = [first.name for first, _ in PAIRS]
    ranges = observe.channel_ranges(CASE.model, variables, [CASE.images], names)
    peaks = {name: found[1] for name, found in ranges.items()}
    return variables, peaks, equalize.equalized(TRACED, variables, peaks)


def logits(variables):
    return np.asarray(jax.jit(CASE.model.apply)(variables, pixels(jnp.asarray(CASE.images))))


def test_pairs_are_convolutions_that_nothing_else_reads():
    names = {(a.name.rpartition("/")[2], b.name.rpartition("/")[2]) for a, b in PAIRS}
    assert {("expand", "depthwise"), ("depthwise", "project")} <= names
    for first, second in PAIRS:
        assert sum(first.name in unit.inputs for unit in TRACED.units) == 1
        assert second.inputs == (first.name,)


def test_the_float_network_computes_the_same(case):
    variables, _, params = case
    before, after = logits(variables), logits({**variables, "params": params})
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()
    changed = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), variables["params"], params)
    assert max(jax.tree.leaves(changed)) > 0.1


def test_channels_that_are_clipped_stay_and_others_are_not_clipped(case):
    variables, peaks, params = case
    ranges = observe.channel_ranges(
        CASE.model, {**variables, "params": params}, [CASE.images], list(peaks)
    )
    some = False
    for first, _ in PAIRS:
        if first.module.bounds[1] != 6:
            continue
        clipped = peaks[first.name] > 6 * equalize.REACHED
        some |= clipped.any()
        before, after = (at(tree, first.name)["norm"] for tree in (variables["params"], params))
        np.testing.assert_array_equal(before["scale"][clipped], after["scale"][clipped])
        assert (ranges[first.name][1] <= 6).all()
    assert some


def test_a_free_channel_has_one_range_in_both_convolutions():
    """Two layers by hand; the depthwise kernel and its norm are one number for each channel."""
    first, second = next(p for p in PAIRS if p[0].name.endswith("depthwise"))
    only = TRACED._replace(units=(first, second))
    peaks = {first.name: np.full(first.out_shape[-1], 1e-6)}  # nothing is near the bound
    params = equalize.equalized(only, CASE.variables, peaks)

    def largest(params):
        a, b = at(params, first.name), at(params, second.name)
        stats = [
            at(CASE.variables["batch_stats"], unit.name)["norm"]["var"] for unit in (first, second)
        ]
        gain = [
            np.abs(x["norm"]["scale"]) / np.sqrt(v + 1e-5)
            for x, v in zip((a, b), stats, strict=True)
        ]
        r1 = np.abs(a["kernel"]).max((0, 1, 2)) * gain[0]
        r2 = (np.abs(b["kernel"]) * gain[1]).max((0, 1, 3))
        return r1, r2

    before, (r1, r2) = largest(CASE.variables["params"]), largest(params)
    used = (before[0] > 0) & (before[1] > 0)
    assert used.sum() > 3
    np.testing.assert_allclose(r1[used], r2[used], rtol=1e-2)
    np.testing.assert_allclose((r1 * r2)[used], (before[0] * before[1])[used], rtol=1e-4)
