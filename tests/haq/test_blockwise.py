"""The table of QA-BWNAS as a rival, on MobileNetV2 of an eighth of the width."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import small_haq
from qnas_jax import metrics
from qnas_jax.errors import InputError
from qnas_jax.haq import blockwise, env
from qnas_jax.nn import init
from qnas_jax.nn.trace import trace
from qnas_jax.nn.units import pixels
from qnas_jax.search.allocation import Choices, costs_of
from qnas_jax.stages import quantizers, scoring


def choices_of(layers, budget=np.inf):
    rng = np.random.default_rng(0)
    steps = rng.uniform(1, 2, (len(layers.least), 9, 9))
    cost = np.cumsum(np.cumsum(steps, 1), 2)
    return Choices(*(np.asarray(x) for x in (layers.least, layers.most, layers.lead)), cost, budget)


@pytest.fixture(scope="module")
def case():
    model, shape = small_haq.two_blocks(), (16, 16, 3)
    traced = trace(model, shape)
    layers = env.describe(traced.convs, quantizers.lead_of(traced))
    return model, traced, choices_of(layers)


def test_blocks_are_those_of_the_network(case):
    _, traced, _ = case
    names = [conv.name for conv in traced.convs]
    found = [
        [[names[n] for n in layer] for layer in block] for block in blockwise.groups_of(traced)
    ]
    parts = ("expand", "depthwise", "project")
    assert found == [
        [[f"encoder/block1/layer{layer}/{part}" for part in parts] for layer in (0, 1)],
        [[f"encoder/block2/layer0/{part}" for part in parts]],
        [[name for name in names if "block1" not in name and "block2" not in name]],
    ]


def test_the_choices_of_a_block_leave_all_else_at_the_most_bits(case):
    _, traced, choices = case
    block = blockwise.groups_of(traced)[0]
    found = blockwise.policies_of(block, choices)
    assert len(found) == len(blockwise.BITS) ** 2
    inside = np.isin(np.arange(len(choices.lead)), np.concatenate(block))
    assert (found[:, ~inside] == choices.most[~inside]).all()
    seen = {tuple(int(policy[layer[0], 0]) for layer in block) for policy in found}
    assert seen == set(itertools.product(blockwise.BITS, repeat=2))
    for policy, layer in itertools.product(found, block):
        assert len(np.unique(policy[layer])) == 1, "weights and activations of a layer agree"


def test_the_best_combination_is_that_of_brute_force(case):
    _, traced, choices = case
    tables = [blockwise.policies_of(block, choices) for block in blockwise.groups_of(traced)]
    rng = np.random.default_rng(1)
    noises = [rng.uniform(0, 1, len(table)) for table in tables]
    combined = list(itertools.product(*(range(len(table)) for table in tables)))
    whole, sums = [], []
    for rows in combined:
        whole.append(np.min([table[i] for table, i in zip(tables, rows, strict=True)], 0))
        sums.append(sum(noise[i] for noise, i in zip(noises, rows, strict=True)))
    whole, sums = np.stack(whole), np.array(sums)
    costs = costs_of(choices.cost, whole)
    for share in (0.05, 0.3, 0.7, 1.0):
        bound = float(costs.min() + share * (costs.max() - costs.min()))
        found = blockwise.choose(tables, noises, choices._replace(budget=bound))
        best = np.flatnonzero(costs <= bound)[np.argmin(sums[costs <= bound])]
        np.testing.assert_array_equal(found, whole[best])


@pytest.mark.parametrize("group", [1, 2], ids=["block", "all else"])
def test_noise_is_that_of_the_output(case, group):
    model, traced, choices = case
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (4, 16, 16, 3), np.uint8)
    variables = init.initialize(model, jax.random.key(0), images.shape)
    kept = {name: variables[name] for name in ("params", "batch_stats")}
    quantize = quantizers.linear(model, traced, kept, variables["quant"], [images], "min_max")
    tested = scoring.Tested(model, None, kept, quantize)

    def output(read):
        x = pixels(jnp.asarray(images))
        found = model.apply(read, x, method="features")[2] if group == 1 else model.apply(read, x)
        return np.asarray(found, np.float64)

    table = blockwise.policies_of(blockwise.groups_of(traced)[group], choices)[[0, -1]]
    found = blockwise.noise(tested, images, None)(group)(table).loss
    clean = output(kept)
    for policy, noise in zip(table, found, strict=True):
        read = {**quantize(kept["params"], jnp.asarray(policy)), "batch_stats": kept["batch_stats"]}
        error = np.square(output(read) - clean).mean((0, 1, 2))
        expected = np.mean(error / (clean.var((0, 1, 2)) + metrics.NSR_EPSILON))
        np.testing.assert_allclose(noise, expected, rtol=1e-4)
    assert found[0] > 10 * found[1], "2 bits are noisier than 8"


def test_what_cannot_be_chosen_is_said_at_once(case):
    _, traced, choices = case
    tables = [blockwise.policies_of(group, choices)[:1] for group in blockwise.groups_of(traced)]
    lowest = float(costs_of(choices.cost, choices.least))
    with pytest.raises(InputError, match="with 2 bits everywhere"):
        blockwise.choose(tables, [np.zeros(1)] * 3, choices._replace(budget=0.9 * lowest))
    with pytest.raises(InputError, match="needs a network of blocks"):
        blockwise.groups_of(trace(small_haq.Small(12), (32, 32, 3)))
