"""From a Flax network to the graph that is written: batch norm folded, weights as codes.

The convolutions tell their strides, dilations and bounds themselves (the network is traced
once); how they are wired is written out here, by their names.

Folding multiplies each output channel by its norm's factor. Weights are quantized per
channel, so the factor goes into the channel's scale and the codes stay; where it is
negative they change their sign, which a symmetric grid allows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import PyTree

from qnas_jax.export import graph
from qnas_jax.export.graph import Graph, Node, Shape, Tensor
from qnas_jax.kernels import convolution
from qnas_jax.nn import trace
from qnas_jax.nn.classifier import Classifier
from qnas_jax.nn.conv import ConvBnAct
from qnas_jax.nn.deeplab import DeepLabV3
from qnas_jax.nn.mobilenet import PIXEL_RANGE
from qnas_jax.quant import affine

PIXELS = graph.Grid(scale=1 / 128, zero_point=128, bits=8)  # the grid that is an image's bytes
IMAGE = "image"
# A channel's scale is no smaller than its bias (or what a float32 holds) needs.
MOST_BIAS_CODES, LEAST_SCALE = 2.0**30, 2.0**-64


class _Draft(NamedTuple):
    """A graph in the making, and the network that it is made from.

    Attributes:
      units: The network's convolutions and grids by name.
      variables: Its `params` and `batch_stats`.
      grids: Its grids by name; empty in float.
      weights: Codes, scales and bitwidth of its weights by name; empty in float.
      tensors: What there is so far, by name.
      nodes: What gives them.
    """

    units: dict[str, trace.Unit]
    variables: PyTree
    grids: dict[str, graph.Grid]
    weights: dict[str, tuple[np.ndarray, np.ndarray, int]]
    tensors: dict[str, Tensor]
    nodes: list[Node]

    def append(self, node: Node) -> str:
        """Adds a node; returns the name of what it gives."""
        self.tensors[node.out.name] = node.out
        self.nodes.append(node)
        return node.out.name

    def conv(self, name: str, x: str, grid: graph.Grid | None) -> str:
        """Adds the convolution of that name, its output on a grid."""
        unit = self.units[name]
        layer = unit.module
        assert isinstance(layer, ConvBnAct)
        params = _at(self.variables["params"], name)
        factor, bias = _affine(params, _at(self.variables["batch_stats"], name), layer.norm)
        how = {
            "out": Tensor(name, unit.out_shape, grid),
            "x": x,
            "bias": bias.astype(np.float32),
            "stride": layer.stride,
            "dilation": layer.dilation,
            "groups": unit.in_shape[-1] if layer.depthwise else 1,
            "bounds": layer.bounds,
        }
        if name not in self.weights:
            weights = (np.asarray(params["kernel"], np.float64) * factor).astype(np.float32)
            return self.append(graph.Conv(weights=weights, **how))
        read = self.tensors[x].grid
        assert read is not None and grid is not None
        codes, scale, w_bits = self.weights[name]
        folded = _folded(codes, scale, factor, bias, read.scale, grid)
        return self.append(graph.Conv(w_bits=w_bits, **folded, **how))


def _at(tree: PyTree, name: str) -> Any:
    """What a collection holds at a module's place; nothing where it has no entry."""
    for part in name.split("/"):
        tree = tree.get(part, {})
    return tree


def _affine(params, statistics, norm: bool) -> tuple[np.ndarray, np.ndarray]:
    """Factor and bias of each channel behind the convolution itself, float64."""
    if not norm:
        bias = np.asarray(params["bias"], np.float64)
        return np.ones_like(bias), bias
    scale, bias = (np.asarray(params["norm"][name], np.float64) for name in ("scale", "bias"))
    mean, var = (np.asarray(statistics["norm"][name], np.float64) for name in ("mean", "var"))
    factor = scale / np.sqrt(var + convolution.NORM_EPSILON)
    return factor, bias - mean * factor


def _folded(codes, scale, factor, bias, x_scale, out) -> dict[str, np.ndarray]:
    """Weights and bias as codes.

    A bias is a whole number of steps, one step being the least that an input's code and a
    weight's can add. Where a norm divides by next to nothing, because its channel reads
    nothing but zeros, a step is many codes of the output. It is made so fine that the largest
    weight and one code of the input cross half of the output's grid; the weights beyond
    that are clipped, and weigh nothing but zeros. A channel that its norm all but switches
    off would need a bias beyond 32 bits, and gets coarser steps.
    """
    exact = scale.astype(np.float64) * np.abs(factor)
    least = np.maximum(np.abs(bias) / (x_scale * MOST_BIAS_CODES), LEAST_SCALE)
    q_max = np.abs(codes).max(initial=1)
    most = out.q_max / 2 / q_max * out.scale / x_scale
    w_scale = np.maximum(np.minimum(exact, most), least).astype(np.float32)
    ratio = np.where(w_scale == exact.astype(np.float32), 1.0, exact / w_scale)
    weights = np.clip(np.rint(codes * np.sign(factor) * ratio), -q_max, q_max)
    return {
        "weights": weights.astype(np.int8),
        "w_scale": w_scale,
        "bias_codes": np.rint(bias / (x_scale * w_scale.astype(np.float64))).astype(np.int32),
    }


def of_network(
    model: DeepLabV3, variables: PyTree, quant: PyTree | None, image_shape: Shape
) -> Graph:
    """The whole segmentation network: bytes of an image in, its class map out.

    Args:
      model: The network.
      variables: Its `params` and `batch_stats`.
      quant: Its policy, calibrated; None for the float network.
      image_shape: Height, width and channels of the pictures.
    """

    def wire(draft: _Draft, x: str) -> None:
        x = _aspp(draft, "aspp", _encoder(draft, x))
        x = draft.conv("classifier", x, draft.grids.get("classifier/out"))
        height, width, _ = image_shape
        whole = Tensor("resized", (height, width, model.classes))
        x = draft.append(graph.Resize(whole, _reals(draft, x, "logits")))
        draft.append(graph.ArgMax(Tensor("classes", (height, width, 1)), x))

    return _of_images(model, variables, quant, image_shape, wire)


def of_classifier(
    model: Classifier, variables: PyTree, quant: PyTree | None, image_shape: Shape
) -> Graph:
    """The classification network: bytes of an image in, its class out; as `of_network`."""

    def wire(draft: _Draft, x: str) -> None:
        x = draft.conv("last", _encoder(draft, x), draft.grids.get("last/out"))
        mean = Tensor("mean", (1, 1, model.features), draft.grids.get("mean"))
        x = draft.append(graph.Mean(mean, x))
        x = draft.conv("classifier", x, draft.grids.get("classifier/out"))
        draft.append(graph.ArgMax(Tensor("classes", (1, 1, 1)), _reals(draft, x, "logits")))

    return _of_images(model, variables, quant, image_shape, wire)


def _of_images(
    module: nn.Module,
    variables: PyTree,
    quant: PyTree | None,
    image_shape: Shape,
    wire: Callable[[_Draft, str], Any],
) -> Graph:
    """A graph that reads images; the wiring begins at the pixels."""
    units, coded = trace.units(module, image_shape), ({}, {})
    if quant is not None:
        _check_pixels(quant["encoder"]["input"])
        coded = _coded(units, variables["params"], quant)
    image = Tensor(IMAGE, image_shape, PIXELS)
    draft = _Draft(units, jax.device_get(variables), *coded, {IMAGE: image}, [])
    wire(draft, _reals(draft, IMAGE, "pixels") if quant is None else IMAGE)
    return Graph(image, tuple(draft.nodes))


def _reals(draft: _Draft, x: str, name: str) -> str:
    """Real values of a tensor, under a name of their own; itself where it has no grid."""
    tensor = draft.tensors[x]
    if tensor.grid is None:
        return x
    return draft.append(graph.Dequantize(tensor._replace(name=name, grid=None), x))


def with_bias_codes(variables: PyTree, network: Graph) -> PyTree:
    """The variables with the weights and biases that the quantized graph really has.

    Fake quantization with them differs from the graph by the rounding of float32 alone;
    with those that the graph was made from, by the rounding of the biases, too.

    Args:
      variables: `params` and `batch_stats` that the graph was made from.
      network: The quantized graph.
    """
    params = jax.tree.map(np.asarray, variables["params"])
    tensors = network.tensors()
    for conv in network.convs:
        read, leaves = tensors[conv.x].grid, _at(params, conv.out.name)
        assert read is not None and conv.w_scale is not None and conv.bias_codes is not None
        statistics = _at(variables["batch_stats"], conv.out.name)
        factor, offset = _affine(leaves, statistics, "norm" in leaves)
        w_scale = conv.w_scale.astype(np.float64)
        holder = leaves.get("norm", leaves)
        change = conv.bias_codes * w_scale * read.scale - offset
        holder["bias"] = (holder["bias"] + change).astype(np.float32)
        kept = np.where(factor == 0, 1.0, factor)
        kernel = (conv.weights * (w_scale / kept)).astype(np.float32)
        leaves["kernel"] = np.where(factor == 0, leaves["kernel"], kernel)
    return {**variables, "params": params}


def _coded(units: dict[str, trace.Unit], params: PyTree, quant: PyTree):
    """All grids, and all weights as codes: one program, not one for each shape."""
    convs = [name for name, unit in units.items() if isinstance(unit.module, ConvBnAct)]

    @jax.jit
    def encode(params, quant):
        grids, weights = {}, {}
        for name in units:
            leaves = _at(quant, name)
            if name in convs:
                weights[name] = affine.weight_codes(_at(params, name)["kernel"], leaves["w_bits"])
            else:
                grids[name] = affine.asymmetric_grid(leaves["range"], leaves["a_bits"])[:2]
        return grids, weights

    grids, weights = jax.device_get(encode(params, quant))
    bits = {name: _at(quant, name)["w_bits" if name in convs else "a_bits"] for name in units}
    return (
        {name: graph.Grid(float(s), int(z), int(bits[name])) for name, (s, z) in grids.items()},
        {name: (*coded, int(bits[name])) for name, coded in weights.items()},
    )


def _check_pixels(leaves) -> None:
    """The bytes of an image must be the codes of the network's input."""
    same = np.array_equal(np.asarray(leaves["range"]), np.asarray(PIXEL_RANGE, np.float32))
    if not (same and int(leaves["a_bits"]) == PIXELS.bits):
        raise ValueError(f"the network's input is on the grid {leaves}, not that of bytes")


def _encoder(draft: _Draft, x: str) -> str:
    """Stem and inverted residuals, in the order in which they were traced."""
    x = draft.conv("encoder/stem", x, draft.grids.get("encoder/stem/out"))
    projects = [unit for unit in draft.units if unit.endswith("/project")]
    for project in projects:
        x = _mbconv(draft, project.removesuffix("/project"), x)
    return x


def _mbconv(draft: _Draft, name: str, x: str) -> str:
    """An inverted residual."""
    y = x
    for part in ("expand", "depthwise", "project"):
        place = f"{name}/{part}"
        if place in draft.units:
            y = draft.conv(place, y, draft.grids.get(f"{place}/out"))
    place = f"{name}/add"
    if place not in draft.units:
        return y
    out = Tensor(place, draft.tensors[y].shape, draft.grids.get(place))
    return draft.append(graph.Add(out, (x, y)))


def _aspp(draft: _Draft, name: str, x: str) -> str:
    """Atrous spatial pyramid pooling: every branch on the grid of their concatenation."""
    height, width, channels = draft.tensors[x].shape
    mean = Tensor(f"{name}/mean", (1, 1, channels), draft.grids.get(f"{name}/mean"))
    joined = draft.grids.get(f"{name}/concat")
    pool = draft.conv(f"{name}/pool", draft.append(graph.Mean(mean, x)), joined)
    spread = draft.tensors[pool]._replace(
        name=f"{name}/broadcast", shape=(height, width, draft.tensors[pool].shape[-1])
    )
    branches = [draft.append(graph.Broadcast(spread, pool))]
    for place, unit in draft.units.items():
        branch = isinstance(unit.module, ConvBnAct) and place.startswith(f"{name}/")
        if branch and not place.endswith(("/pool", "/join")):
            branches.append(draft.conv(place, x, joined))
    out = Tensor(f"{name}/concat", draft.units[f"{name}/concat"].out_shape, joined)
    x = draft.append(graph.Concat(out, tuple(branches)))
    return draft.conv(f"{name}/join", x, draft.grids.get(f"{name}/join/out"))
