"""Slices of a network, each a graph of its own; the costs of all add up to the network's."""

from collections.abc import Sequence

from qnas_jax.export.graph import Graph, Node

STEM, HEAD = "stem", "head"  # all before the first searched layer, and all after the last


def layers(network: Graph) -> dict[str, Graph]:
    """The stem, every searched layer by its name, "block1/layer0", and the head."""
    nodes: dict[str, list[Node]] = {}
    name = STEM
    for node in network.nodes:
        if node.out.site:
            name = node.out.site.layer_name
        elif name != STEM:
            name = HEAD
        nodes.setdefault(name, []).append(node)
    return {name: _by_itself(network, found) for name, found in nodes.items()}


def _by_itself(network: Graph, nodes: Sequence[Node]) -> Graph:
    """Nodes that follow each other and read one tensor from outside."""
    given = {node.out.name for node in nodes}
    (read,) = {name for node in nodes for name in node.inputs} - given
    return Graph(network.tensors()[read], tuple(nodes))


def chained(parts: Sequence[Graph]) -> Graph:
    """Slices in a row; each reads the output of the one before."""
    return Graph(parts[0].x, tuple(node for part in parts for node in part.nodes))
