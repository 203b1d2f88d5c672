"""A graph as an ONNX model: float, or QDQ with uint8 activations.

Images go in as bytes, uint8[n, height, width, 3], and class maps come out, uint8[n, height,
width]; other graphs have their own input and output, channels last. ONNX's convolutions need
the channels first.

In a quantized model every tensor of codes has its name in the graph and is uint8 at every
bitwidth. A quantizer clips to 0 ... 255 by itself; where the grid or the
activation ends earlier, a Clip of the bytes follows, so that runtimes can still fuse the
quantizer with the convolution. Weights are int8 with a scale for each output channel; of 4
bits and fewer they are packed in pairs (INT4), of 5 to 7 they take a byte each. Biases are
int32, their scale is that of the input times that of the weights.
"""

from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qnas_jax.export import graph
from qnas_jax.export.graph import Graph, Node, Tensor
from qnas_jax.hardware.size import PACKED_BITS

OPSET, IR_VERSION = 21, 10


class _Builder(NamedTuple):
    """An ONNX graph under construction.

    Attributes:
      nodes: Its nodes, in order.
      constants: Its initializers, by what they hold.
      reals: Names of dequantized tensors, by the name of their codes.
      tensors: Tensors of the network, by name.
      channels_last: Names of those whose channels come last here.
    """

    nodes: list[onnx.NodeProto]
    constants: dict[bytes, onnx.TensorProto]
    reals: dict[str, str]
    tensors: dict[str, Tensor]
    channels_last: set[str]

    def node(self, kind: str, inputs: list[str], out: str = "", **attributes) -> str:
        """Adds a node; returns the name of its output, a short one unless given."""
        out = out or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [out], **attributes))
        return out

    def constant(self, value: np.ndarray | np.generic) -> str:
        """Adds an array unless it is there already; returns its name."""
        return self.hold(numpy_helper.from_array(np.asarray(value)))

    def hold(self, tensor: onnx.TensorProto) -> str:
        """Adds an initializer unless it is there already; returns its name."""
        held = self.constants.setdefault(tensor.SerializeToString(), tensor)
        held.name = held.name or f"c{len(self.constants)}"
        return held.name

    def grid(self, grid: graph.QParams) -> list[str]:
        """Scale and zero point of a grid."""
        return [self.constant(np.float32(grid.scale)), self.constant(np.uint8(grid.zero_point))]

    def real(self, name: str) -> str:
        """The real values of a tensor."""
        grid = self.tensors[name].grid
        if grid is None:
            return name
        if name not in self.reals:
            self.reals[name] = self.node("DequantizeLinear", [name, *self.grid(grid)])
        return self.reals[name]

    def quantize(self, real: str, out: Tensor, bounds: graph.Bounds) -> None:
        """Ends a layer: the activation, and the grid where there is one."""
        if out.grid is None:
            self.activate(real, out.name, bounds)
            return
        low, high = out.grid.code_bounds(bounds)
        clips = (low, high) != (0, 255)
        codes = "" if clips else out.name
        codes = self.node("QuantizeLinear", [real, *self.grid(out.grid)], codes)
        if clips:
            ends = [self.constant(np.uint8(low)), self.constant(np.uint8(high))]
            self.node("Clip", [codes, *ends], out.name)

    def activate(self, real: str, out: str, bounds: graph.Bounds) -> None:
        """Clips real values to an activation's interval."""
        match bounds:
            case (0.0, np.inf):
                self.node("Relu", [real], out)
            case (low, high) if np.isinf([low, high]).all():
                self.nodes[-1].output[0] = out
            case _:
                self.node("Clip", [real, *(self.constant(np.float32(b)) for b in bounds)], out)


def model(network: Graph) -> onnx.ModelProto:
    """The model, checked by `onnx.checker`."""
    builder = _Builder([], {}, {}, network.tensors(), set())
    x, out = network.x, network.out
    x_type = TensorProto.UINT8 if x.grid else TensorProto.FLOAT
    # What is read has its name outside; inside, the name is that of the transposed tensor.
    source = f"{x.name}_nhwc"
    builder.node("Transpose", [source], x.name, perm=[0, 3, 1, 2])
    for node in network.nodes:
        _write(builder, node)
    inputs = [helper.make_tensor_value_info(source, x_type, ["n", *x.shape])]
    if isinstance(network.nodes[-1], graph.ArgMax):
        out_type = _class_type(builder.tensors[network.nodes[-1].x])
        result = helper.make_tensor_value_info(out.name, out_type, ["n", *out.shape[:2]])
    else:
        name = builder.node("Transpose", [out.name], f"{out.name}_nhwc", perm=[0, 2, 3, 1])
        out_type = TensorProto.UINT8 if out.grid else TensorProto.FLOAT
        result = helper.make_tensor_value_info(name, out_type, ["n", *out.shape])
    constants = list(builder.constants.values())
    whole = helper.make_graph(builder.nodes, "qnas_jax", inputs, [result], constants)
    made = helper.make_model(
        whole, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(made, full_check=True)
    return made


def _write(builder: _Builder, node: Node) -> None:
    out = node.out
    match node:
        case graph.ConvNode():
            builder.quantize(_conv(builder, node), out, node.bounds)
        case graph.Add():
            total = builder.node("Add", [builder.real(x) for x in node.inputs])
            builder.quantize(total, out, (-np.inf, np.inf))
        case graph.Mean():
            mean = builder.node("GlobalAveragePool", [builder.real(node.x)])
            builder.quantize(mean, out, (-np.inf, np.inf))
        case graph.Dequantize():
            grid = builder.tensors[node.x].grid
            assert grid is not None
            builder.node("DequantizeLinear", [node.x, *builder.grid(grid)], out.name)
        case graph.Broadcast():
            shape = builder.constant(np.array([1, 1, *out.shape[:2]]))
            builder.node("Expand", [node.x, shape], out.name)
        case graph.Concat():
            builder.node("Concat", list(node.inputs), out.name, axis=1)
        case graph.Resize():
            sizes = builder.constant(np.array(out.shape[:2]))
            # Channels last, ONNX Runtime is twice as fast here and in the ArgMax after it.
            last = builder.node("Transpose", [node.x], perm=[0, 2, 3, 1])
            how: dict[str, Any] = {"mode": "linear", "axes": [1, 2]}
            builder.node("Resize", [last, "", "", sizes], out.name, **how)
            builder.channels_last.add(out.name)
        case graph.ArgMax():
            axis = 3 if node.x in builder.channels_last else 1
            best = builder.node("ArgMax", [node.x], axis=axis, keepdims=0)
            builder.node("Cast", [best], out.name, to=_class_type(builder.tensors[node.x]))


def _class_type(logits: graph.Tensor) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(graph.class_type(logits.shape[-1])))


def _conv(builder: _Builder, conv: graph.ConvNode) -> str:
    """The convolution and its bias, in real units."""
    weights = np.ascontiguousarray(conv.weights.transpose(3, 2, 0, 1))
    read = builder.tensors[conv.x].grid
    if read is None or conv.w_scale is None or conv.w_bits is None:
        terms = [builder.constant(weights), builder.constant(conv.bias)]
    else:
        codes = builder.hold(_packed(weights)) if conv.w_bits <= PACKED_BITS else None
        codes = codes or builder.constant(weights)
        # One scale for all channels is a scalar, as runtimes without others need it.
        own = conv.w_scale if np.ptp(conv.w_scale) else conv.w_scale[0]
        scale = builder.constant(own)
        bias_scale = builder.node("Mul", [scale, builder.constant(np.float32(read.scale))])
        bias = builder.constant(np.asarray(conv.bias_codes))
        terms = [
            builder.node("DequantizeLinear", [codes, scale], axis=0),
            builder.node("DequantizeLinear", [bias, bias_scale], axis=0),
        ]
    how: dict[str, Any] = {"group": conv.groups} if conv.groups > 1 else {}
    if conv.stride > 1:
        how["strides"] = [conv.stride] * 2
    if conv.dilation > 1 and conv.kernel > 1:
        how["dilations"] = [conv.dilation] * 2
    if conv.padding:
        return builder.node("Conv", [_padded(builder, conv), *terms], **how)
    if conv.pad:
        how["pads"] = [conv.pad] * 4
    return builder.node("Conv", [builder.real(conv.x), *terms], **how)


def _padded(builder: _Builder, conv: graph.ConvNode) -> str:
    """What the convolution reads with its padding around, in real units.

    ONNX pads with one number, so each channel is padded by itself.
    """
    read, count = builder.tensors[conv.x].grid, len(conv.padding)
    around = np.array(conv.padding, np.float32) if read is None else conv.padding_codes(read)
    channels = [f"{conv.out.name}/channel{i}" for i in range(count)]
    builder.nodes.append(helper.make_node("Split", [conv.x], channels, axis=1, num_outputs=count))
    pads = builder.constant(np.array([0, 0, conv.pad, conv.pad] * 2))
    inner = [
        builder.node("Pad", [channel, pads, builder.constant(value)])
        for channel, value in zip(channels, around, strict=True)
    ]
    joined = builder.node("Concat", inner, axis=1)
    if read is None:
        return joined
    return builder.node("DequantizeLinear", [joined, *builder.grid(read)])


def _packed(codes: np.ndarray) -> onnx.TensorProto:
    """Weights of 4 bits and fewer, two in a byte, the first in the lower half."""
    flat = codes.reshape(-1).astype(np.uint8) & 15
    flat = np.pad(flat, (0, flat.size % 2))
    data = (flat[0::2] | flat[1::2] << 4).tobytes()
    return helper.make_tensor("", TensorProto.INT4, codes.shape, data, raw=True)
