"""Chooses grids on which all runtimes give the same codes for the sum of two tensors.

Runtimes agree on convolutions. In a sum, ONNX Runtime scales the terms by float32 numbers, and
XNNPACK (in LiteRT) by 20-bit integers. For one or two of the 65,536 pairs of codes the results lie
on different sides of a tie, and each following layer amplifies the difference. If the scale is
larger by a millionth, other pairs differ, or none.
"""

import jax
import numpy as np
from jaxtyping import PyTree

from qnas_jax.export import graph
from qnas_jax.export.graph import Graph, QParams
from qnas_jax.export.litert import rounding
from qnas_jax.nn import policy
from qnas_jax.quant import affine, integer

STEP = 2.0**-20  # relative widening per step
MOST_STEPS = 256  # most sums need none, few need more than 20


def with_agreed_sums(network: Graph, quant: PyTree) -> PyTree:
    """Returns the policy with the ranges of sums widened until all pairs of codes agree.

    If no range within `MOST_STEPS` steps works for a sum, the one with the fewest differing pairs
    is used.

    Args:
      network: The quantized graph made from `quant`.
      quant: A calibrated policy.
    """
    quant = jax.tree.map(np.asarray, quant)
    grids = {name: tensor.grid for name, tensor in network.tensors().items()}
    for node in network.nodes:
        if isinstance(node, graph.Add):
            leaves = policy.output_at(quant, node.out.name)
            leaves["range"], grids[node.out.name] = _agreed(node, grids, leaves)
    return quant


def _agreed(add: graph.Add, grids: dict[str, QParams | None], leaves) -> tuple[np.ndarray, QParams]:
    """The first range without a differing pair, else the one with the fewest, and its grid."""
    inputs = [grid for name in add.inputs if (grid := grids[name]) is not None]
    found = []
    for steps in range(MOST_STEPS):
        range_ = (leaves["range"] * (1 + steps * STEP)).astype(np.float32)
        grid = _grid(range_, leaves["a_bits"])
        found.append((pairs_that_differ(inputs, grid), steps, range_, grid))
        if found[-1][0] == 0:
            break
    _, _, range_, grid = min(found, key=lambda one: one[:2])
    return range_, grid


def _grid(range_, bits) -> QParams:
    scale, zero_point, _ = _asymmetric_grid(range_, bits)
    return QParams(float(scale), int(zero_point), int(bits))


_asymmetric_grid = jax.jit(affine.asymmetric_grid)  # jitted as in fold.py, for the same bits


def pairs_that_differ(inputs: list[QParams], out: QParams) -> int:
    """Returns the number of pairs of codes for which ONNX Runtime and XNNPACK differ.

    Args:
      inputs: Grids of the two terms.
      out: QParams of the sum.
    """
    every = (np.arange(grid.q_max + 1, dtype=np.uint8) for grid in inputs)
    a, b = np.meshgrid(*every, indexing="ij")
    on_a, on_b, on_out = ((grid.scale, grid.zero_point) for grid in (*inputs, out))
    by_float = integer.add(a, b, on_a, on_b, on_out, out.q_max)
    by_whole_numbers = rounding.xnnpack_add([a, b], inputs, out)
    return int(np.count_nonzero(by_float != by_whole_numbers))
