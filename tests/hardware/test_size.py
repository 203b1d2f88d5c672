import functools

import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.hardware import size

DEPTHWISE = space.Conv("a", 3, 1, 1, 5, 5, 5, 8, 8)  # 45 weights: no multiple of a byte
DENSE = space.Conv("b", 1, 1, 1, 1, 5, 7, 8, 8)  # 35 weights


def packed_bytes(conv, bits):
    """Bytes of the weights when their bits stand one behind another."""
    shape = (conv.kernel, conv.kernel, conv.in_channels // conv.groups, conv.out_channels, bits)
    return np.packbits(np.ones(shape, np.uint8)).nbytes


@pytest.mark.parametrize("conv", [DEPTHWISE, DENSE], ids=lambda conv: conv.name)
def test_a_convolution_takes_its_packed_weights_and_a_scale_and_a_bias_for_each_channel(conv):
    for bits in range(2, 9):
        expected = packed_bytes(conv, bits) + conv.out_channels * (4 + 4)
        assert size.conv_bytes(conv, bits) == expected
    found = size.conv_bytes(conv, np.arange(2, 9, dtype=np.int8))
    assert found.tolist() == [int(size.conv_bytes(conv, bits)) for bits in range(2, 9)]


def test_one_scale_for_a_layer_is_counted_once():
    for conv in (DEPTHWISE, DENSE):
        saved = (conv.out_channels - 1) * 4
        assert size.conv_bytes(conv, 4) - size.conv_bytes(conv, 4, per_channel=False) == saved
        for form, scales in ((size.ONNX_QDQ, 1), (size.TFLITE, 2)):  # TFLite stores a bias's scale
            both = [size.file_bytes(conv, 8, form, per_channel=each) for each in (True, False)]
            assert both[0] - both[1] == scales * saved


def test_a_large_layer_does_not_overflow_the_type_of_its_bitwidths():
    conv = space.Conv("head", 3, 1, 12, 1, 2048, 512, 64, 128)
    expected = 9 * 2048 * 512 * 8 // 8 + 512 * 8
    assert int(size.conv_bytes(conv, np.int8(8))) == expected
    assert size.conv_bytes(conv, np.array([8], np.int8)).tolist() == [expected]


def test_a_network_is_the_sum_of_its_convolutions():
    convs = [DEPTHWISE, DENSE, DENSE]
    assert size.network_bytes(convs, 4) == 23 + 5 * 8 + 2 * (18 + 7 * 8)
    assert size.network_bytes(iter(convs), 8) == 45 + 35 + 35 + (5 + 7 + 7) * 8
    assert size.network_bytes([], 8) == 0
    stored = functools.partial(size.file_bytes, file_format=size.TFLITE)
    assert size.network_bytes(convs, 6, stored) == 45 + 5 * 12 + 2 * (35 + 7 * 12)


def test_a_float_network_takes_four_bytes_for_each_weight_and_bias():
    assert size.float_bytes([DEPTHWISE, DENSE]) == 4 * (45 + 5 + 35 + 7)


@pytest.mark.parametrize("conv", [DEPTHWISE, DENSE], ids=lambda conv: conv.name)
@pytest.mark.parametrize(
    ("file_format", "beside", "least"), [(size.ONNX_QDQ, 8, 4), (size.TFLITE, 12, 8)]
)
def test_a_file_has_four_bits_or_eight(conv, file_format, beside, least):
    """A float32 scale and an int32 bias for each channel; LiteRT's biases have scales, too."""
    packed = np.packbits(np.ones((conv.weights, least), np.uint8)).nbytes
    found = size.file_bytes(conv, np.arange(2, 9), file_format)
    expected = [weights + conv.out_channels * beside for weights in (packed, conv.weights)]
    assert found.tolist() == [expected[0]] * 3 + [expected[1]] * 4
    assert found.tolist() == [size.file_bytes(conv, bits, file_format) for bits in range(2, 9)]


def test_a_runtime_holds_whole_bytes_at_every_bitwidth():
    assert size.runtime_bytes(DENSE) == 35 + 7 * (4 + 4 + 4)


def test_columns_are_not_mixed_up():
    large = space.Conv("c", 1, 1, 1, 1, 512, 256, 8, 8)
    for bits, smaller in ((2, True), (3, True), (4, False), (7, True), (8, False)):
        stored = size.file_bytes(large, bits, size.ONNX_QDQ)
        assert (size.conv_bytes(large, bits) < stored) == smaller
