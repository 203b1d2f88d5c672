"""How much work the prefix tree of a block is."""

from collections.abc import Sequence
from typing import NamedTuple

from qnas_jax import space

VALUE_BYTES = {"float32": 4, "int8": 1}  # of an activation


class Work(NamedTuple):
    """The work of a block's prefix tree on one image.

    Attributes:
      macs: Multiply-accumulate operations.
      values: Activations.
      node_values: Activations that are held while one node runs, at most.
      kept_values: Of them those between layers: what a node reads, and what its ops give.
    """

    macs: int
    values: int
    node_values: int
    kept_values: int

    def moved_bytes(self, compute: str) -> int:
        """Bytes moved in that arithmetic, if every activation is written and read once."""
        return 2 * VALUE_BYTES[compute] * self.values

    def node_bytes(self, compute: str) -> int:
        """Bytes held while one node runs, at most, with as many again for temporaries."""
        return 2 * VALUE_BYTES[compute] * self.node_values

    def fused_node_bytes(self) -> int:
        """`node_bytes` in int8, if activations within an op never reach memory."""
        return 2 * VALUE_BYTES["int8"] * self.kept_values


def work(
    block: space.Block,
    ops: tuple[space.Op, ...],
    bits: Sequence[Sequence[space.Bits]],
    shape: tuple[int, int],
) -> Work:
    """The work of a prefix tree on one image.

    Args:
      block: The block.
      ops: Its candidates.
      bits: The bitwidths that each layer may take.
      shape: Height and width of the block's input.
    """
    nodes, macs, total, held, kept = 1, 0, 0, 0, 0
    before = shape[0] * shape[1] * block.in_channels  # what a node reads
    for choices, convs in zip(bits, space.block_convs(block, ops, shape), strict=True):
        values = sum(conv.out_channels * conv.out_pixels for conv in convs)
        macs += nodes * len(choices) * sum(conv.macs for conv in convs)
        total += nodes * len(choices) * values
        held = max(held, values)
        output = convs[-1].out_channels * convs[-1].out_pixels
        kept = max(kept, before + len(ops) * output)
        before = output
        nodes *= len(choices) * len(ops)
    return Work(macs, total, held, kept)
