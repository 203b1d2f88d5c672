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


def test_a_float_network_takes_four_bytes_for_each_weight_and_bias():
    assert size.float_bytes([DEPTHWISE, DENSE]) == 4 * (45 + 5 + 35 + 7)


@pytest.mark.parametrize("conv", [DEPTHWISE, DENSE], ids=lambda conv: conv.name)
def test_a_file_has_four_bits_or_eight(conv):
    shape = (conv.weights,)
    packed = np.packbits(np.ones((*shape, 4), np.uint8)).nbytes
    plain = np.ones(shape, np.int8).nbytes
    zero_points = np.zeros(conv.out_channels, np.int64).nbytes
    scales = np.zeros(conv.out_channels, np.float32).nbytes
    bias = np.zeros(conv.out_channels, np.int32).nbytes + scales + zero_points
    found = size.file_bytes(conv, np.arange(2, 9), size.TFLITE)
    expected = [weights + zero_points + scales + bias for weights in (packed, plain)]
    assert found.tolist() == [expected[0]] * 3 + [expected[1]] * 4
    assert found.tolist() == [size.file_bytes(conv, bits, size.TFLITE) for bits in range(2, 9)]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("conv", [DEPTHWISE, DENSE], ids=lambda conv: conv.name)
def test_a_file_of_onnx_has_as_many_bytes(conv, bits):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    shape = (conv.out_channels, conv.in_channels // conv.groups, conv.kernel, conv.kernel)
    kind = {4: onnx.TensorProto.INT4, 8: onnx.TensorProto.INT8}[bits]
    element = onnx.helper.tensor_dtype_to_np_dtype(kind)
    values = {
        "weights": np.ones(shape, element),
        "scale": np.ones(conv.out_channels, np.float32),
        "zero_point": np.zeros(conv.out_channels, element),
        "bias": np.ones(conv.out_channels, np.int32),
        "bias_scale": np.ones(conv.out_channels, np.float32),
    }
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in values.items()]
    nodes = [
        onnx.helper.make_node(
            "DequantizeLinear", ["weights", "scale", "zero_point"], ["w"], axis=0
        ),
        onnx.helper.make_node("DequantizeLinear", ["bias", "bias_scale"], ["b"], axis=0),
        onnx.helper.make_node("Conv", ["x", "w", "b"], ["y"], group=conv.groups),
    ]
    sides = [1, conv.in_channels, conv.in_height, conv.in_width]
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, sides)
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph(nodes, "conv", [x], [y], tensors)
    opset = [onnx.helper.make_opsetid("", 21)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert size.file_bytes(conv, bits, size.ONNX_QDQ) == sum(len(t.raw_data) for t in tensors)


def test_a_runtime_holds_whole_bytes_at_every_bitwidth():
    assert size.runtime_bytes(DENSE) == 35 + 7 * (4 + 4 + 4)


def test_columns_are_not_mixed_up():
    large = space.Conv("c", 1, 1, 1, 1, 512, 256, 8, 8)
    for bits, smaller in ((2, True), (3, True), (4, False), (7, True), (8, False)):
        beside = 256 * (4 + 4)
        weights = size.file_bytes(large, bits, size.ONNX_QDQ) - beside - 256 * 4
        zero_points = 256 * (4 if bits <= 4 else 8) // 8
        assert (size.conv_bytes(large, bits) - beside < weights - zero_points) == smaller
