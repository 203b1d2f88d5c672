"""Population of the look-up table, block by block and image by image.

Every finished chunk of images is written down, so a killed population goes on where it
was. The work itself, a block's whole tree on some images, is in `tree.py`.
"""

import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qnas_jax import artefact, space, table, tree
from qnas_jax.hardware import size
from qnas_jax.nn import supernet
from qnas_jax.runlog import Progress

logger = logging.getLogger(__name__)

Bits = tuple[int, int]  # of weights, of activations
# The feature maps at all block boundaries of some images, by their numbers.
Features = Callable[[range], tuple[Array, ...]]


def populate(
    features: Features,
    params: Sequence[supernet.Params],
    searched: space.Space,
    bits: Sequence[Bits],
    *,
    calibration: range,
    chunks: Sequence[range],
    nodes_per_pass: int,
    partial: pathlib.Path,
) -> list[np.ndarray]:
    """The NSR of every path of every block at every bitwidth.

    Args:
      features: The teacher's feature maps of some images.
      params: Each block's supernet.
      searched: Blocks and ops.
      bits: The bitwidths of weights and activations that a block may take.
      calibration: Images for batch-norm statistics and ranges.
      chunks: Images for the NSR, each chunk run at once.
      nodes_per_pass: Nodes of a tree that are run at once.
      partial: File that holds what is done; read if it is there.

    Returns:
      float32[bits, rows] for each block; not finite where a path gave no finite output.
    """
    sums = [np.zeros((len(bits), searched.rows(i))) for i in range(len(searched.blocks))]
    done = np.zeros(len(searched.blocks), np.int64)  # chunks
    if partial.exists():
        with np.load(partial) as file:
            done, sums = file["done"], [file[f"sums{i}"] for i in range(len(sums))]
        logger.info("lut: resumed, %d of %d chunks done", done.sum(), done.size * len(chunks))
    variances, pixels = _target_statistics(features, chunks)

    def rows_done() -> int:
        return int(sum(d * s.size for d, s in zip(done, sums, strict=True)))

    total = sum(s.size for s in sums) * len(chunks)
    progress = Progress("lut", total, rows_done())
    for i, block in enumerate(searched.blocks):
        if done[i] == len(chunks):
            continue
        x = features(calibration)[i]
        trees = [
            tree.calibrate(
                params[i], block, searched.ops, jnp.int32(w), jnp.int32(a), x, nodes_per_pass
            )
            for w, a in bits
        ]
        for chunk in chunks[done[i] :]:
            maps = features(chunk)
            for b, calibrated in enumerate(trees):
                sums[i][b] += tree.noise(calibrated, maps[i], maps[i + 1], variances[i])
            done[i] += 1
            with artefact.writing(partial) as file:
                named: dict[str, Any] = {f"sums{j}": s for j, s in enumerate(sums)}
                np.savez(file, done=done, **named)
            progress.show(rows_done(), f"rows x chunks, block {i + 1}")
    return [(s / p).astype(np.float32) for s, p in zip(sums, pixels, strict=True)]


def _target_statistics(features, chunks):
    """Variance of each block's target per channel, and its pixels, over all chunks."""

    @jax.jit
    def moments(maps):
        return [(jnp.mean(m, (0, 1, 2)), jnp.var(m, (0, 1, 2))) for m in maps[1:]]

    means, squares, pixels = [], [], []
    for chunk in chunks:
        maps = features(chunk)
        pixels.append([m.size // m.shape[-1] for m in maps[1:]])
        found = [np.asarray(m, np.float64) for m in moments(maps)]
        means.append([m for m, _ in found])
        squares.append([v + m**2 for m, v in found])
    weights = np.array(pixels, np.float64)  # [chunks, blocks]
    variances = []
    for i in range(weights.shape[1]):
        share = weights[:, i] / weights[:, i].sum()
        mean = sum(s * m[i] for s, m in zip(share, means, strict=True))
        square = sum(s * m[i] for s, m in zip(share, squares, strict=True))
        variances.append(jnp.asarray(np.maximum(square - mean**2, 0), jnp.float32))
    return variances, weights.sum(0)


def make_table(
    nsr: Sequence[np.ndarray], searched: space.Space, bits: Sequence[Bits]
) -> table.Table:
    """The table of all blocks, with the size of each row.

    Args:
      nsr: What `populate` gives.
      searched: Blocks and ops.
      bits: The bitwidths, as `populate` had them.
    """
    depth = max(block.depth for block in searched.blocks)
    parts: list[dict[str, Any]] = []
    for i, block in enumerate(searched.blocks):
        for b, (w_bits, a_bits) in enumerate(bits):
            part = table.block_rows(i, block.depth, searched.ops, w_bits, a_bits, depth)
            layers = _op_bytes(block, searched.ops, w_bits)
            size_bytes = sum(layers[n][part["path"][:, n]] for n in range(block.depth))
            parts.append({**part, "nsr": nsr[i][b], "size_bytes": size_bytes})
    columns = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    costs = {"size_bytes": columns.pop("size_bytes")}
    result = table.Table(ops=searched.ops, costs=costs, **columns)
    bad = np.flatnonzero(~np.isfinite(result.nsr))
    for row in bad[:20]:
        text = space.format_subnet((result.choices(row),))
        logger.warning("block %d, %s: NSR is not finite; left out", result.block[row] + 1, text)
    if len(bad) > 20:
        logger.warning("and %d more rows", len(bad) - 20)
    return result


def _op_bytes(block: space.Block, ops, w_bits: int) -> list[np.ndarray]:
    """Bytes of each op at each layer of a block, int64[ops] per layer."""
    result = []
    for layer in range(block.depth):
        in_channels, stride = block.layer_shape(layer)
        shape = (1, 1, in_channels)  # the size does not depend on the pixels
        convs = [space.mbconv_convs(op, "", shape, block.channels, stride, 1) for op in ops]
        result.append(np.array([size.network_bytes(c, w_bits) for c in convs]))
    return result
