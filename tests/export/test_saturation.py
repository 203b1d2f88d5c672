"""Files for CPUs whose sums of two products of bytes have 16 bits (x86 with AVX2, without VNNI)."""

import functools

import numpy as np
import pytest

import small_network
from qnas_jax.export import fold
from qnas_jax.hardware import target
from qnas_jax.nn import policy

AVX2 = target.named("x86_avx2")


def sums(weights, codes, saturating):
    """Sums of an output channel as VPMADDUBSW adds them: pairs in 16 bits, then all in 32."""
    products = weights.astype(np.int64)[:, None] * codes
    if len(products) % 2:
        products = np.concatenate([products, np.zeros_like(products[:1])])
    pairs = products[::2] + products[1::2]
    return (np.clip(pairs, -(2**15), 2**15 - 1) if saturating else pairs).sum(0)


@functools.cache
def networks():
    """A network with weights of 8 bits, and as the target has it."""
    case = small_network.make_case(small_network.INT8)
    quant = policy.with_most_w_bits(case.quant, AVX2.most_w_bits)
    folded = fold.fold(case.model, case.variables, quant, small_network.SHAPE, resize=True)
    return {"8 bits": case.network, "x86_avx2": folded}


def differing(network):
    """Output channels whose sums differ, for codes at both ends of the input's grid."""
    rng, found = np.random.default_rng(0), 0
    for conv in network.convs:
        by_channel = conv.weights.reshape(-1, conv.weights.shape[-1]).T
        for weights in by_channel:
            codes = rng.choice([0, 255], (len(weights), 64))
            codes[:, 0] = np.where(weights > 0, 255, 0)  # the largest sum
            found += (sums(weights, codes, True) != sums(weights, codes, False)).any()
    return found


def test_weights_of_8_bits_saturate_and_those_of_the_target_do_not():
    assert differing(networks()["8 bits"]) > 10
    assert differing(networks()["x86_avx2"]) == 0


def test_all_layers_of_the_target_have_few_enough_bits():
    """The largest magnitude is at most 63, and two products of 255 and 63 fit into 16 bits."""
    for conv in networks()["x86_avx2"].convs:
        assert conv.w_bits <= 7, conv.name
        assert np.abs(conv.weights.astype(int)).max() <= 63
    assert 2 * 255 * 63 < 2**15 <= 2 * 255 * 127


@pytest.mark.parametrize("name", ["8 bits", "x86_avx2"])
def test_the_reference_is_exact_where_nothing_saturates(name):
    weights = networks()[name].convs[0].weights
    flat = weights.reshape(-1, weights.shape[-1])[:, 0]
    codes = np.zeros((len(flat), 3), np.int64)
    codes[0] = 1, 2, 3
    expected = flat[0].astype(int) * np.array([1, 2, 3])
    np.testing.assert_array_equal(sums(flat, codes, True), expected)
