"""A graph as a LiteRT model (`.tflite`): float, or full-integer with the graph's own scales.

Images go in as bytes, uint8[1, height, width, 3], and class maps come out, uint8[1, height,
width]; other graphs give int8 codes or float32 values. The signature has the graph's names for
both: `image` and `classes`. The flatbuffer is written directly: no converter chooses scales,
and none is needed.

LiteRT's activations are int8. A grid has its highest code at 127, the upper end of int8, so
that int8 itself clips there. At 8 bits that is the code less 128, and int8 clips at both
ends. With fewer bits a layer's ReLU clips at the lower end. A layer without one first writes
its codes at the lower end of int8, where -128 clips them, and a QUANTIZE shifts them to the
upper end, where 127 does; that is exact.

Weights are int8 with a scale for each output channel, at every bitwidth: LiteRT's
convolutions with packed weights round twice and are slower than those in float. Biases are
int32, and have a scale for each channel again, that of the input times that of the weights.

References:
  Quantized models: https://ai.google.dev/edge/litert/models/quantization_spec.
"""

from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.schema_py_generated import ActivationFunctionType, Padding, TensorType

from qnas_jax.errors import InputError
from qnas_jax.export import graph
from qnas_jax.export.graph import Graph, Node, QParams, Tensor
from qnas_jax.export.litert import flatbuffer

LOWEST, HIGHEST = -128, 127  # of int8
LINEAR = (-np.inf, np.inf)
ACTIVATIONS = {
    LINEAR: ActivationFunctionType.NONE,
    (0.0, np.inf): ActivationFunctionType.RELU,
    (0.0, 6.0): ActivationFunctionType.RELU6,
}


def zero_point(grid: QParams) -> int:
    """The int8 code of a grid's zero."""
    return grid.zero_point + HIGHEST - grid.q_max


def codes(grid: QParams, held: np.ndarray) -> np.ndarray:
    """The codes of a grid, uint8, from the values of an int8 tensor."""
    return (held.astype(np.int16) - (HIGHEST - grid.q_max)).astype(np.uint8)


class _Writer(NamedTuple):
    """A model under construction, and the network that it is made from.

    Attributes:
      tensors: The network's, by name.
      draft: The model.
      places: Numbers of the model's tensors, by the names of the network's.
    """

    tensors: dict[str, Tensor]
    draft: flatbuffer.Draft
    places: dict[str, int]

    def out(self, out: Tensor) -> int:
        """Adds the tensor that holds one of the network; returns its number."""
        kind, quantization = TensorType.FLOAT32, None
        if out.grid is not None:
            quantization = flatbuffer.per_tensor(out.grid.scale, zero_point(out.grid))
            kind = TensorType.INT8
        number = self.draft.tensor(out.name, (1, *out.shape), kind, quantization)
        self.places[out.name] = number
        return number

    def linear(self, kind: str, inputs: list[int], out: Tensor, options: Any) -> None:
        """Adds an operator without activation, and what clips its codes to their grid."""
        grid = out.grid
        if grid is None or grid.q_max == HIGHEST - LOWEST:
            self.draft.operator(kind, inputs, self.out(out), options)
            return
        low = flatbuffer.per_tensor(grid.scale, grid.zero_point + LOWEST)
        number = self.draft.tensor(f"{out.name}/low", (1, *out.shape), TensorType.INT8, low)
        self.draft.operator(kind, inputs, number, options)
        self.draft.operator("QUANTIZE", [number], self.out(out))


def model(network: Graph, reads_bytes: bool = True) -> bytes:
    """The model as the bytes of a file.

    Args:
      network: The graph.
      reads_bytes: Whether codes go in as bytes, as those of an image do; else as int8, as
        inside of a network.

    Raises:
      InputError: LiteRT has no such activation.
    """
    writer, x = _Writer(network.tensors(), flatbuffer.draft(), {}), network.x
    if x.grid is None or not reads_bytes:
        source = writer.out(x)
    else:
        grid = flatbuffer.per_tensor(x.grid.scale, x.grid.zero_point)
        source = writer.draft.tensor(f"{x.name}/bytes", (1, *x.shape), TensorType.UINT8, grid)
        writer.places[x.name] = source
        if not isinstance(network.nodes[0], graph.Dequantize):
            writer.draft.operator("QUANTIZE", [source], writer.out(x))
    for node in network.nodes:
        _write(writer, node)
    out = network.out.name
    return flatbuffer.pack(writer.draft, (x.name, source), (out, writer.places[out]))


def _write(writer: _Writer, node: Node) -> None:
    draft, out = writer.draft, node.out
    inputs = [writer.places[name] for name in node.inputs]
    match node:
        case graph.ConvNode():
            _conv(writer, node)
        case graph.Add():
            writer.linear("ADD", inputs, out, schema.AddOptionsT())
        case graph.Mean():
            options = schema.ReducerOptionsT(keepDims=True)
            writer.linear("MEAN", [*inputs, draft.whole_numbers(1, 2)], out, options)
        case graph.Dequantize():
            draft.operator("DEQUANTIZE", inputs, writer.out(out))
        case graph.Concat():
            options = schema.ConcatenationOptionsT(axis=3)
            draft.operator("CONCATENATION", inputs, writer.out(out), options)
        case graph.Broadcast() | graph.Resize():
            # A single pixel, resized, is that pixel everywhere, exactly.
            options = schema.ResizeBilinearOptionsT(halfPixelCenters=True)
            sides = draft.whole_numbers(*out.shape[:2])
            draft.operator("RESIZE_BILINEAR", [*inputs, sides], writer.out(out), options)
        case graph.ArgMax():
            _arg_max(writer, node)


def _arg_max(writer: _Writer, node: graph.ArgMax) -> None:
    """LiteRT's own gives int32, which is made bytes where they suffice."""
    draft, shape = writer.draft, (1, *node.out.shape[:2])
    inputs = [writer.places[node.x], draft.whole_numbers(3)]
    narrows = graph.class_type(writer.tensors[node.x].shape[-1]) == np.uint8
    name = f"{node.out.name}/int32" if narrows else node.out.name
    wide = draft.tensor(name, shape, TensorType.INT32)
    found = draft.operator("ARG_MAX", inputs, wide, schema.ArgMaxOptionsT(TensorType.INT32))
    if not narrows:
        writer.places[node.out.name] = found
        return
    narrow = draft.tensor(node.out.name, shape, TensorType.UINT8)
    options = schema.CastOptionsT(TensorType.INT32, TensorType.UINT8)
    writer.places[node.out.name] = draft.operator("CAST", [wide], narrow, options)


def _conv(writer: _Writer, conv: graph.ConvNode) -> None:
    activation = ACTIVATIONS.get(conv.bounds)
    if activation is None:
        raise InputError(f"{conv.out.name}: LiteRT has no activation that clips to {conv.bounds}")
    x, padding = _padded(writer, conv)
    how = {
        "padding": padding,
        "strideW": conv.stride,
        "strideH": conv.stride,
        "dilationWFactor": conv.dilation,
        "dilationHFactor": conv.dilation,
        "fusedActivationFunction": activation,
    }
    if conv.groups > 1:
        kind, order, axis = "DEPTHWISE_CONV_2D", (2, 0, 1, 3), 3
        options = schema.DepthwiseConv2DOptionsT(depthMultiplier=1, **how)
    else:
        kind, order, axis = "CONV_2D", (3, 0, 1, 2), 0
        options = schema.Conv2DOptionsT(**how)
    inputs = [x, *_weights(writer, conv, order, axis)]
    if conv.bounds == LINEAR:
        writer.linear(kind, inputs, conv.out, options)
    else:
        writer.draft.operator(kind, inputs, writer.out(conv.out), options)


def _padded(writer: _Writer, conv: graph.ConvNode) -> tuple[int, int]:
    """What the convolution reads, and its padding.

    SAME is symmetric only where the last window ends with the image. Elsewhere the image is
    first padded with its own zero.
    """
    x, read = writer.places[conv.x], writer.tensors[conv.x]
    height, width, channels = read.shape
    if conv.padding:
        return _framed(writer, conv), Padding.VALID
    if not conv.pad:
        return x, Padding.VALID
    if (height - 1) % conv.stride == 0 and (width - 1) % conv.stride == 0:
        return x, Padding.SAME
    around = np.array([[0, 0], [conv.pad] * 2, [conv.pad] * 2, [0, 0]], np.int32)
    larger = (height + 2 * conv.pad, width + 2 * conv.pad, channels)
    out = writer.out(read._replace(name=f"{conv.out.name}/pad", shape=larger))
    sides = writer.draft.constant(around.tobytes(), around.shape, TensorType.INT32)
    return writer.draft.operator("PAD", [x, sides], out, schema.PadOptionsT()), Padding.VALID


def _framed(writer: _Writer, conv: graph.ConvNode) -> int:
    """What the convolution reads with its padding around.

    LiteRT pads with one number for all channels, so rows and columns are joined to the image.
    """
    x, read, pad = writer.places[conv.x], writer.tensors[conv.x], conv.pad
    height, width, channels = read.shape
    around, kind, grid = np.array(conv.padding, np.float32), TensorType.FLOAT32, read.grid
    quantization = None
    if grid is not None:
        lowered = conv.padding_codes(grid).astype(np.int16) + HIGHEST - grid.q_max
        around, kind = lowered.astype(np.int8), TensorType.INT8
        quantization = flatbuffer.per_tensor(grid.scale, zero_point(grid))
    for axis, shape, whole in (
        (1, (1, pad, width, channels), (height + 2 * pad, width)),
        (2, (1, height + 2 * pad, pad, channels), (height + 2 * pad, width + 2 * pad)),
    ):
        data = np.ascontiguousarray(np.broadcast_to(around, shape)).tobytes()
        edge = writer.draft.constant(data, shape, kind, quantization)
        name = f"{conv.out.name}/pad{axis}"
        out = writer.out(read._replace(name=name, shape=(*whole, channels)))
        options = schema.ConcatenationOptionsT(axis=axis)
        x = writer.draft.operator("CONCATENATION", [edge, x, edge], out, options)
    return x


def _weights(writer: _Writer, conv: graph.ConvNode, order: tuple[int, ...], axis: int) -> list[int]:
    """Weights and biases."""
    weights = np.ascontiguousarray(conv.weights.transpose(order))
    shape, outputs = weights.shape, (weights.shape[axis],)
    read, constant = writer.tensors[conv.x].grid, writer.draft.constant
    if read is None or conv.w_bits is None or conv.w_scale is None or conv.bias_codes is None:
        return [
            constant(weights.tobytes(), shape, TensorType.FLOAT32),
            constant(conv.bias.tobytes(), outputs, TensorType.FLOAT32),
        ]
    bias_scale = flatbuffer.per_channel(np.float32(read.scale) * conv.w_scale, 0)
    return [
        constant(
            weights.tobytes(), shape, TensorType.INT8, flatbuffer.per_channel(conv.w_scale, axis)
        ),
        constant(conv.bias_codes.tobytes(), outputs, TensorType.INT32, bias_scale),
    ]
