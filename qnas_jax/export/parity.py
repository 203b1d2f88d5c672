"""Whether a file computes what was measured: code by code, pixel by pixel, in accuracy.

These computations of one quantized network are compared on the same images:

- fake quantization, as the network was searched with;
- the same with the biases that the file has (int32, see `fold.with_bias_codes`);
- the integer simulation (`simulate.py`), which gives the codes of the reference
  (`interpret.py`), and with which the network was measured;
- a runtime that runs the file.

The last two agree to the code where a runtime rounds as the reference does. Fake quantization
sums in float32, so that now and then a value next to a tie falls to its other side; from
there on, the two networks read different codes. Each layer's own rounding is therefore also
compared on codes that fake quantization gave it.
"""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from qnas_jax import metrics
from qnas_jax.data.batching import Dataset
from qnas_jax.errors import InputError
from qnas_jax.export import graph, interpret
from qnas_jax.export.graph import Graph, Node
from qnas_jax.nn.conv import Grid
from qnas_jax.nn.deeplab import DeepLabV3
from qnas_jax.quant import integer
from qnas_jax.train import supervised
from qnas_jax.train.supervised import ClassMaps

Codes = dict[str, np.ndarray]  # of tensors, by their names


def simulate(model: DeepLabV3, network: Graph, variables: PyTree, images: np.ndarray) -> Codes:
    """The codes that fake quantization gives every tensor.

    Args:
      model: The network.
      network: Its quantized graph.
      variables: Its variables, `quant` among them.
      images: Pictures, uint8[n, h, w, 3].
    """
    tensors, found = network.tensors(), {network.x.name: images}
    captured = jax.device_get(_captured(model, variables, images))
    for path, value in jax.tree_util.tree_leaves_with_path(captured):
        place = "/".join(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        name = place.removesuffix("/__call__").removesuffix("/out")
        grid = tensors[name].grid if name in tensors else None
        if grid:
            found[name] = grid.codes(value)
    return _parts(network, found)


@functools.partial(jax.jit, static_argnums=0)
def _captured(model, variables, images):
    """What the grids of a network give, in real units."""
    _, state = model.apply(
        variables,
        supervised.pixels(images),
        capture_intermediates=lambda module, _: isinstance(module, Grid),
        mutable=["intermediates"],
    )
    return state["intermediates"]


def _parts(network: Graph, found: Codes) -> Codes:
    """Codes together with those of tensors that are on the grid of what they are joined to."""
    found = dict(found)
    for node in reversed(network.nodes):
        if isinstance(node, graph.Concat):
            tensors = network.tensors()
            ends = np.cumsum([tensors[name].shape[-1] for name in node.inputs])[:-1]
            found |= zip(node.inputs, np.split(found[node.out.name], ends, -1), strict=True)
        elif isinstance(node, graph.Broadcast):
            found[node.x] = found[node.out.name][:, :1, :1]
    return found


def layers(network: Graph, simulated: Codes, computed: dict[str, Codes]) -> list[dict[str, Any]]:
    """How many codes differ, layer by layer, by how much, and where the first one is.

    Args:
      network: The quantized graph.
      simulated: What fake quantization gives, with the graph's biases.
      computed: What others give, by their names; `integer` is what the rest is held against.

    Returns:
      For each layer its name, the number of its `codes`, what its `own_rounding` makes of the
      simulated input, and how the others differ: `simulation` from `integer`, and every
      other from `integer`.
    """
    tensors, rows = network.tensors(), []
    for node in network.nodes:
        name = node.out.name
        if not isinstance(node, (graph.Conv, graph.Add, graph.Mean)) or not node.out.grid:
            continue
        inputs = [simulated[x] for x in node.inputs]
        grids = [tensors[x].grid for x in node.inputs]
        own = interpret.step(node, inputs, grids, integer.by_float)
        rounding = difference(simulated[name], own)
        changed = own != simulated[name]
        if changed.any():
            value = _unrounded(node, inputs, grids)[changed]
            rounding["farthest_from_tie"] = float(np.abs(value - np.floor(value) - 0.5).max())
        others = {"simulation": simulated} | {k: v for k, v in computed.items() if k != "integer"}
        found = {k: difference(v[name], computed["integer"][name]) for k, v in others.items()}
        rows.append({"name": name, "codes": own.size, "own_rounding": rounding, **found})
    return rows


def difference(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """How many codes `differ`, the `largest` step, and the `first` place (n, h, w, channel)."""
    steps = np.abs(a.astype(np.int32) - b)
    if not steps.any():
        return {"differ": 0}
    first = np.unravel_index(np.argmax(steps > 0), steps.shape)
    return {
        "differ": int(np.count_nonzero(steps)),
        "largest": int(steps.max()),
        "first": [int(i) for i in first],
    }


def _unrounded(node: Node, inputs: list[np.ndarray], grids: list) -> np.ndarray:
    """What a layer rounds, in codes of its output, float64."""
    out = node.out.grid
    assert out is not None
    if isinstance(node, graph.Conv):
        assert node.w_scale is not None and node.bias_codes is not None
        how = (node.stride, node.dilation, node.groups)
        x = integer.conv(inputs[0], grids[0].zero_point, node.weights, node.bias_codes, *how)
        return x * (grids[0].scale * node.w_scale.astype(np.float64) / out.scale)
    terms = [
        grid.scale * (codes.astype(np.float64) - grid.zero_point)
        for codes, grid in zip(inputs, grids, strict=True)
    ]
    if isinstance(node, graph.Add):
        return (terms[0] + terms[1]) / out.scale
    return terms[0].mean((1, 2), keepdims=True) / out.scale


def class_maps(
    sources: dict[str, ClassMaps], data: Dataset, batch: int, classes: int
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """mIoU of several computations, and the share of pixels in which any two agree.

    Args:
      sources: Functions images -> class maps, by their names.
      data: The validation split.
      batch: Pictures at once.
      classes: Number of classes.

    Returns:
      mIoU in percent by name, and agreement in percent by name and name.
    """
    names = list(sources)
    matrices = {name: np.zeros((classes, classes), np.int64) for name in names}
    equal, pixels = np.zeros((len(names),) * 2, np.int64), 0

    def all_maps(images):
        return np.stack([np.asarray(source(images)) for source in sources.values()], 1)

    for labels, maps in supervised.predictions(all_maps, data, batch):
        for i, name in enumerate(names):
            matrices[name] += metrics.confusion(labels, maps[:, i], classes)
            equal[i] += [np.count_nonzero(maps[:, i] == maps[:, j]) for j in range(len(names))]
        pixels += labels.size
    agreement = {
        a: {b: round(100 * int(equal[i, j]) / pixels, 4) for j, b in enumerate(names) if i != j}
        for i, a in enumerate(names)
    }
    return {name: round(metrics.mean_iou(m), 4) for name, m in matrices.items()}, agreement


def summary(rows: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, int]]]:
    """For each comparison of `layers`: codes, how many differ, and layers that have such."""
    for name in ("own_rounding", *list(rows[0])[3:]):
        differ = [row[name]["differ"] for row in rows]
        yield (
            name,
            {
                "codes": sum(row["codes"] for row in rows),
                "differ": sum(differ),
                "layers": sum(d > 0 for d in differ),
            },
        )


def check(
    place: pathlib.Path, miou: dict[str, float], file: str, reference: str, most: float
) -> None:
    """Raises InputError for a file that loses more mIoU than it may.

    Args:
      place: The file that tells all, for the message.
      miou: In percent, by the names of `class_maps`.
      file: Name of what the file gives.
      reference: Name of what it is held against.
      most: Points of mIoU that it may lose.
    """
    lost = miou[reference] - miou[file]
    if not lost <= most:
        raise InputError(
            f"{place}: {file} has mIoU {miou[file]:.2f} %, {reference} {miou[reference]:.2f} %; "
            f"{lost:.3g} points are lost, export.max_miou_drop={most}: "
            "quantize with more images (quantize.images), or allow more"
        )
