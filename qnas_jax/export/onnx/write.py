"""A graph as an ONNX model: float, or QDQ with uint8 activations.

Images go in as bytes, uint8[n, height, width, 3], and class maps come out, uint8[n, height,
width]; other graphs take and give what they read and write, channels last. Inside, ONNX's
convolutions want the channels first.

In a quantized model every tensor of codes has its name in the graph and lies in uint8,
whatever its bitwidth. A quantizer clips to 0 ... 255 by itself; where the grid or the
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


class _Draft(NamedTuple):
    """An ONNX graph in the making.

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
        """Adds an array, once for all that read the same; returns its name."""
        return self.hold(numpy_helper.from_array(np.asarray(value)))

    def hold(self, tensor: onnx.TensorProto) -> str:
        """Adds an initializer, once for all that read the same; returns its name."""
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
    """The model; `onnx.checker` has found nothing wrong with it."""
    draft = _Draft([], {}, {}, network.tensors(), set())
    x, out = network.x, network.out
    x_type = TensorProto.UINT8 if x.grid else TensorProto.FLOAT
    # What is read has its name outside; inside, the name is that of the transposed tensor.
    source = f"{x.name}_nhwc"
    draft.node("Transpose", [source], x.name, perm=[0, 3, 1, 2])
    for node in network.nodes:
        _write(draft, node)
    inputs = [helper.make_tensor_value_info(source, x_type, ["n", *x.shape])]
    if isinstance(network.nodes[-1], graph.ArgMax):
        result = helper.make_tensor_value_info(out.name, TensorProto.UINT8, ["n", *out.shape[:2]])
    else:
        name = draft.node("Transpose", [out.name], f"{out.name}_nhwc", perm=[0, 2, 3, 1])
        out_type = TensorProto.UINT8 if out.grid else TensorProto.FLOAT
        result = helper.make_tensor_value_info(name, out_type, ["n", *out.shape])
    constants = list(draft.constants.values())
    whole = helper.make_graph(draft.nodes, "qnas_jax", inputs, [result], constants)
    made = helper.make_model(
        whole, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(made, full_check=True)
    return made


def _write(draft: _Draft, node: Node) -> None:
    out = node.out
    match node:
        case graph.ConvNode():
            draft.quantize(_conv(draft, node), out, node.bounds)
        case graph.Add():
            total = draft.node("Add", [draft.real(x) for x in node.inputs])
            draft.quantize(total, out, (-np.inf, np.inf))
        case graph.Mean():
            mean = draft.node("GlobalAveragePool", [draft.real(node.x)])
            draft.quantize(mean, out, (-np.inf, np.inf))
        case graph.Dequantize():
            grid = draft.tensors[node.x].grid
            assert grid is not None
            draft.node("DequantizeLinear", [node.x, *draft.grid(grid)], out.name)
        case graph.Broadcast():
            shape = draft.constant(np.array([1, 1, *out.shape[:2]]))
            draft.node("Expand", [node.x, shape], out.name)
        case graph.Concat():
            draft.node("Concat", list(node.inputs), out.name, axis=1)
        case graph.Resize():
            sizes = draft.constant(np.array(out.shape[:2]))
            # Channels last, ONNX Runtime is twice as fast here and in the ArgMax behind it.
            last = draft.node("Transpose", [node.x], perm=[0, 2, 3, 1])
            how: dict[str, Any] = {"mode": "linear", "axes": [1, 2]}
            draft.node("Resize", [last, "", "", sizes], out.name, **how)
            draft.channels_last.add(out.name)
        case graph.ArgMax():
            axis = 3 if node.x in draft.channels_last else 1
            best = draft.node("ArgMax", [node.x], axis=axis, keepdims=0)
            draft.node("Cast", [best], out.name, to=TensorProto.UINT8)


def _conv(draft: _Draft, conv: graph.ConvNode) -> str:
    """The convolution and its bias, in real units."""
    weights = np.ascontiguousarray(conv.weights.transpose(3, 2, 0, 1))
    read = draft.tensors[conv.x].grid
    if read is None or conv.w_scale is None or conv.w_bits is None:
        terms = [draft.constant(weights), draft.constant(conv.bias)]
    else:
        codes = draft.hold(_packed(weights)) if conv.w_bits <= PACKED_BITS else None
        codes = codes or draft.constant(weights)
        scale = draft.constant(conv.w_scale)
        bias_scale = draft.node("Mul", [scale, draft.constant(np.float32(read.scale))])
        bias = draft.constant(np.asarray(conv.bias_codes))
        terms = [
            draft.node("DequantizeLinear", [codes, scale], axis=0),
            draft.node("DequantizeLinear", [bias, bias_scale], axis=0),
        ]
    how: dict[str, Any] = {"group": conv.groups} if conv.groups > 1 else {}
    if conv.stride > 1:
        how["strides"] = [conv.stride] * 2
    if conv.dilation > 1 and conv.kernel > 1:
        how["dilations"] = [conv.dilation] * 2
    if conv.pad:
        how["pads"] = [conv.pad] * 4
    return draft.node("Conv", [draft.real(conv.x), *terms], **how)


def _packed(codes: np.ndarray) -> onnx.TensorProto:
    """Weights of 4 bits and fewer, two in a byte, the first in the lower half."""
    flat = codes.reshape(-1).astype(np.uint8) & 15
    flat = np.pad(flat, (0, flat.size % 2))
    data = (flat[0::2] | flat[1::2] << 4).tobytes()
    return helper.make_tensor("", TensorProto.INT4, codes.shape, data, raw=True)
