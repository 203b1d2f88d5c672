"""Compares an exported file with the measured network: codes, classes and score.

Four computations of one quantized network are compared on the same images:

- fake quantization, which the search uses;
- fake quantization with the int32 biases of the file (see `fold.with_bias_codes`);
- the integer simulation (`simulate.py`), which measures the network and gives the codes of the
  reference (`interpret.py`);
- a runtime that runs the file.

The last two give identical codes if the runtime rounds like the reference. Fake quantization
accumulates in float32, so a value close to a tie is sometimes rounded to the other code. All
layers after it then read different inputs. Therefore each layer is also compared alone, with the
codes of fake quantization as its input (`own_rounding`).
"""

import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import PyTree

from qnas_jax.data.batching import Pairs
from qnas_jax.errors import InputError
from qnas_jax.export import graph, interpret
from qnas_jax.export.graph import Graph, Node
from qnas_jax.nn import policy
from qnas_jax.nn.fake_quant import OnGrid
from qnas_jax.quant import integer
from qnas_jax.tasks.task import Classify, Task, full_batches, ranked
from qnas_jax.train import supervised

Codes = dict[str, np.ndarray]  # tensor name -> codes


def simulate(model: nn.Module, network: Graph, variables: PyTree, images: np.ndarray) -> Codes:
    """Returns the codes of all tensors under fake quantization.

    Args:
      model: The network.
      network: Its quantized graph.
      variables: Its variables, including `quant`.
      images: uint8[n, h, w, 3].
    """
    tensors, found = network.tensors(), {network.x.name: images}
    captured = jax.device_get(_captured(model, variables, images))
    for name, tensor in tensors.items():
        given = policy.output_at(captured, name)
        if tensor.grid and "__call__" in given:
            found[name] = tensor.grid.codes(given["__call__"][0])
    return _parts(network, found)


@functools.partial(jax.jit, static_argnums=0)
def _captured(model, variables, images):
    """Outputs of the fake quantizers of a network, in real units."""
    _, state = model.apply(
        variables,
        supervised.pixels(images),
        capture_intermediates=lambda module, method: (
            isinstance(module, OnGrid) and method == "__call__"
        ),
        mutable=["intermediates"],
    )
    return state["intermediates"]


def _parts(network: Graph, found: Codes) -> Codes:
    """Adds the codes of tensors that share the grid of their concatenation or broadcast."""
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
    """Compares codes layer by layer.

    Args:
      network: The quantized graph.
      simulated: Codes of fake quantization, with the biases of the graph.
      computed: Codes of other computations, by name; `integer` is the reference.

    Returns:
      A row for each layer: its `name`, its number of `codes`, and `difference`s. `own_rounding`
      compares fake quantization and the reference on the same (simulated) input; `simulation`
      and every other computation are compared with `integer`.
    """
    tensors, rows = network.tensors(), []
    for node in network.nodes:
        name = node.out.name
        if not isinstance(node, (graph.ConvNode, graph.Add, graph.Mean)) or not node.out.grid:
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
    """Returns how many codes `differ`, the `largest` step, and the `first` index (n, h, w, c)."""
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
    """Output of a layer before rounding, in steps of its grid, float64."""
    out = node.out.grid
    assert out is not None
    if isinstance(node, graph.ConvNode):
        assert node.w_scale is not None
        x = interpret.sums(node, inputs[0], grids[0])
        return x * (grids[0].scale * node.w_scale.astype(np.float64) / out.scale)
    terms = [
        grid.scale * (codes.astype(np.float64) - grid.zero_point)
        for codes, grid in zip(inputs, grids, strict=True)
    ]
    if isinstance(node, graph.Add):
        return (terms[0] + terms[1]) / out.scale
    return terms[0].mean((1, 2), keepdims=True) / out.scale


def class_maps(
    sources: dict[str, Classify], data: Pairs, batch: int, task: Task
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Returns the main figure of several computations and the agreement of each pair.

    Args:
      sources: Functions images -> classes, by name.
      data: The validation split.
      batch: Images per batch.
      task: The task.

    Returns:
      The task's main figure in percent by name, and agreement in percent by pair of names.
    """
    names = list(sources)
    counts: dict[str, Any] = dict.fromkeys(names, np.int64(0))
    equal, classes = np.zeros((len(names),) * 2, np.int64), 0
    for images, labels in full_batches(data, batch):
        # Files give the best class alone, so that is all that is compared.
        found = [ranked(source(images), labels)[..., :1] for source in sources.values()]
        for i, name in enumerate(names):
            counts[name] = counts[name] + task.tally(labels, found[i])
            equal[i] += [np.count_nonzero(found[i] == other) for other in found]
        classes += labels.size
    agreement = {
        a: {b: round(100 * int(equal[i, j]) / classes, 4) for j, b in enumerate(names) if i != j}
        for i, a in enumerate(names)
    }
    return {name: task.score(count)[task.metric.name] for name, count in counts.items()}, agreement


def summary(rows: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, int]]]:
    """Yields totals for each comparison of `layers`: codes, differing codes, layers that differ."""
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
    place: pathlib.Path,
    title: str,
    scores: Mapping[str, float],
    file: str,
    reference: str,
    most: float,
) -> None:
    """Checks that a file does not score too much lower than its reference.

    Args:
      place: Path of `parity.json`, for the message.
      title: Name of the score.
      scores: Main figure of the task in percent, by the names of `class_maps`.
      file: Name of the file's entry in `scores`.
      reference: Name of the reference's entry in `scores`.
      most: Largest allowed loss, in points.

    Raises:
      InputError: The file loses more than `most`, or its score is NaN.
    """
    lost = scores[reference] - scores[file]
    if not lost <= most:
        raise InputError(
            f"{place}: {file} has {title} {scores[file]:.2f} %, "
            f"{reference} {scores[reference]:.2f} %; "
            f"it loses {lost:.3g} points, export.max_drop={most}: "
            "raise quantize.images or export.max_drop"
        )
