"""How well two scores of a table's rows agree."""

import logging

import numpy as np

from qnas_jax import metrics
from qnas_jax.bwnas.lut.populate import LEAST_CHUNKS, Scores
from qnas_jax.bwnas.lut.table import Table

logger = logging.getLogger(__name__)

RANKED_ROWS = 1500  # of a block, at most


def of_halves(found: Scores, rows: Table) -> list[float]:
    """Kendall's tau between two halves of the images, for each block's ranking of its paths.

    Empty if there is only one chunk.
    """
    if len(found.by_chunk) < LEAST_CHUNKS:
        return []
    taus = block_taus(rows, *(found.by_chunk[half::2].mean(0) for half in (0, 1)))
    logger.info("lut: two halves of %d images agree to tau %s", found.images, taus)
    return taus


def block_taus(rows: Table, a: np.ndarray, b: np.ndarray) -> list[float]:
    """Kendall's tau between two scores of a table's rows, for each block.

    Of a large block, `RANKED_ROWS` rows drawn at random.
    """
    rng = np.random.default_rng(0)
    taus = []
    for block in range(rows.blocks):
        places = rows.rows_of(block)
        places = rng.choice(places, min(len(places), RANKED_ROWS), replace=False)
        taus.append(round(metrics.kendall_tau(a[places], b[places]), 4))
    return taus
