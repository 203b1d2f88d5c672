"""From a traced network to a graph: the trace has the wiring, and the numbers are given."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from qnas_jax.export import graph
from qnas_jax.export.graph import Graph, Node, QParams, Tensor
from qnas_jax.nn.conv import ConvBnAct
from qnas_jax.nn.trace import IMAGE, Trace, Unit
from qnas_jax.nn.units import Add, Broadcast, Concat, Input, Mean

PIXELS = QParams(scale=1 / 128, zero_point=128, bits=8)  # its codes are the bytes of an image


class Weights(NamedTuple):
    """The numbers of a convolution with its norm folded in; see `graph.ConvNode`."""

    weights: np.ndarray
    bias: np.ndarray
    w_bits: int | None = None
    w_scale: np.ndarray | None = None
    bias_codes: np.ndarray | None = None


# Gives a convolution's numbers from the unit and the grids of its input and output.
Numbers = Callable[[Unit, QParams | None, QParams | None], Weights]


def of_images(
    traced: Trace, grids: Mapping[str, QParams] | None, numbers: Numbers, resize: bool
) -> Graph:
    """A graph that reads the bytes of images and gives classes.

    Args:
      traced: A network whose outputs are logits.
      grids: As `build` takes them, as are the numbers.
      numbers: Of each convolution.
      resize: Whether the logits are resized to the image, so that every pixel of the image gets
        a class; else every pixel of the logits does.
    """
    network = build(traced, Tensor(IMAGE, traced.image_shape, PIXELS), grids, numbers)
    nodes, x, taken = list(network.nodes), network.out, set(network.tensors())
    if x.grid:
        nodes.append(graph.Dequantize(Tensor(_free("logits", taken), x.shape), x.name))
        x = nodes[-1].out
    if resize:
        shape = (*traced.image_shape[:2], x.shape[-1])
        nodes.append(graph.Resize(Tensor(_free("resized", taken), shape), x.name))
        x = nodes[-1].out
    nodes.append(graph.ArgMax(Tensor(_free("classes", taken), (*x.shape[:2], 1)), x.name))
    return Graph(network.x, tuple(nodes))


def _free(name: str, taken: set[str]) -> str:
    """The name, or one like it where a unit has it already."""
    return name if name not in taken else _free(f"{name}_", taken)


def build(traced: Trace, x: Tensor, grids: Mapping[str, QParams] | None, numbers: Numbers) -> Graph:
    """A graph with a node for each unit, in the order in which they run.

    Args:
      traced: The network.
      x: What it reads.
      grids: Of the units that have one of their own, by their names; None for a float graph.
      numbers: Of each convolution.

    Raises:
      ValueError: The last unit does not give the output, or a tensor would need two grids.
    """
    last, names = traced.units[-1].name, {unit.name for unit in traced.units}
    if traced.output != last:
        raise ValueError(f"{last}: is the last unit, but its output is not that of the network")
    given, nodes = {IMAGE: x}, []
    if grids is None and x.grid:
        given[IMAGE] = Tensor(_free("pixels", names), x.shape)
        nodes.append(graph.Dequantize(given[IMAGE], x.name))
    spread = {} if grids is None else _spread(traced.units, grids)
    for unit in traced.units:
        read = [given[name] for name in unit.inputs]
        if isinstance(unit.module, Input):
            given[unit.name] = read[0]
            continue
        if unit.name == x.name:
            raise ValueError(f"{unit.name}: is the name of the input; give the unit another")
        out = Tensor(unit.name, unit.out_shape, spread.get(unit.name), unit.site)
        nodes.append(_node(unit, read, out, numbers))
        given[unit.name] = out
    return Graph(x, tuple(nodes))


def _node(unit: Unit, read: Sequence[Tensor], out: Tensor, numbers: Numbers) -> Node:
    names, module = tuple(tensor.name for tensor in read), unit.module
    match module:
        case ConvBnAct():
            how: dict[str, Any] = numbers(unit, read[0].grid, out.grid)._asdict()
            groups = unit.in_shape[-1] if module.depthwise else 1
            how |= {"stride": module.stride, "dilation": module.dilation, "groups": groups}
            how["padding"] = module.padding if any(module.padding) else ()
            return graph.ConvNode(out=out, x=names[0], bounds=module.bounds, **how)
        case Add():
            return graph.Add(out, names)
        case Mean():
            return graph.Mean(out, names[0])
        case Concat():
            return graph.Concat(out, names)
        case Broadcast():
            return graph.Broadcast(out, names[0])
    raise ValueError(f"{unit.name}: a graph has no node for {type(module).__name__}")


def _spread(units: Sequence[Unit], grids: Mapping[str, QParams]) -> dict[str, QParams]:
    """The grids of all units.

    What is joined has the grid of the concatenation, and what is repeated that of its pixel.
    """
    found, keeps = dict(grids), (Concat, Broadcast)
    for unit in reversed(units):
        if isinstance(unit.module, keeps) and unit.name in found:
            for name in unit.inputs:
                other = found.setdefault(name, found[unit.name]) != found[unit.name]
                if name in grids or other:
                    raise ValueError(f"{unit.name}: joins {name}, which has another grid; {_WAY}")
    lent = found.keys() - grids.keys()
    for unit in units:
        if not isinstance(unit.module, keeps):
            for name in sorted(lent & set(unit.inputs)):
                raise ValueError(f"{unit.name}: reads {name}, which has no grid of its own; {_WAY}")
        elif unit.name not in found and unit.inputs[0] in found:
            found[unit.name] = found[unit.inputs[0]]
        if unit.name not in found:
            raise ValueError(f"{unit.name}: has no grid; {_WAY}")
    return found


_WAY = "grid=False is for what one Concat alone reads"
