"""Numbers on a grid of 2 to 8 bits, in JAX; bitwidths are arrays, so `jax.vmap` runs over them.

bits = jnp.int32(4)
quant.fake_quant(x, quant.min_max(x, bits), bits)  # activations: asymmetric, zero on the grid
quant.fake_quant_weight(w, bits)                   # weights: symmetric, by output channel
quant.kmeans(w, bits)                              # weights: 2**bits shared values, from 1 bit on
quant.nested(w, bits)                              # weights: leading bits of 8-bit codes
quant.lsq.fake_quant_weight(w, step, bits)         # weights: the step of the grid is learned
"""

from qnas_jax.quant import lsq
from qnas_jax.quant.affine import fake_quant, fake_quant_weight
from qnas_jax.quant.calibrate import FindRange, kl, min_max, mse, percentile
from qnas_jax.quant.clusters import kmeans
from qnas_jax.quant.nested import nested

__all__ = [
    "FindRange",
    "fake_quant",
    "fake_quant_weight",
    "kl",
    "kmeans",
    "lsq",
    "min_max",
    "mse",
    "nested",
    "percentile",
]
