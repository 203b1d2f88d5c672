"""The pieces that a network's cost is the sum of, each a graph by itself."""

import re
from collections.abc import Sequence

from qnas_jax.export.graph import Graph, Node

STEM, HEAD = "stem", "head"  # what lies ahead of the first searched layer, and behind the last
_LAYER = re.compile(r"encoder/(block[1-9]\d*/layer\d+)/")


def layers(network: Graph) -> dict[str, Graph]:
    """The stem, every searched layer by its place, "block1/layer0", and the head."""
    nodes: dict[str, list[Node]] = {}
    place = STEM
    for node in network.nodes:
        found = _LAYER.match(node.out.name)
        if found:
            place = found[1]
        elif place != STEM:
            place = HEAD
        nodes.setdefault(place, []).append(node)
    return {place: _by_itself(network, found) for place, found in nodes.items()}


def _by_itself(network: Graph, nodes: Sequence[Node]) -> Graph:
    """Nodes that follow each other and read one tensor from outside."""
    given = {node.out.name for node in nodes}
    (read,) = {name for node in nodes for name in node.inputs} - given
    return Graph(network.tensors()[read], tuple(nodes))


def chained(parts: Sequence[Graph]) -> Graph:
    """Pieces one behind the other; each reads what the one before gives."""
    return Graph(parts[0].x, tuple(node for part in parts for node in part.nodes))
