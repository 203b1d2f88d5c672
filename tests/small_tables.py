"""Look-up tables of two small blocks whose NSRs are drawn."""

import numpy as np

from qnas_jax import space
from qnas_jax.bwnas.lut import table

OPS = (space.Op(3, 2), space.Op(5, 2), space.Op(3, 4))
BLOCKS = (space.Block(4, 6, 2, 1, 2), space.Block(6, 6, 1, 2, 1))
SPACE = space.Space(BLOCKS, OPS)


def drawn(bits, seed=0, noise=1.0):
    """A table at these pairs of bitwidths; the smaller `noise`, the more alike all of them are."""
    parts = table.parts_of(SPACE, bits, per_layer=False)
    common, rng = np.random.default_rng(99), np.random.default_rng(seed)
    by_block = {0: common.random(9), 1: common.random(3)}
    nsr = [by_block[part.block] + noise * rng.random(part.rows) for part in parts]
    return table.build(np.concatenate(nsr).astype(np.float32), SPACE, parts)
