"""Activations on the grids that a `quant` collection holds.

A module of this file or `ConvBnAct` reads its policy from the collection `quant`, in which
`w_bits`, `a_bits` and `range` are arrays. They may be traced, vmapped or trained through.

A relaxed search gives `choice` in place of `a_bits` and `range`: `bits`, several bitwidths, and
`shares`, one-hot; or `mixture`, with any shares. A training that learns ranges gives
`learned_range` in place of `range`.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from qnas_jax.quant import affine, calibrate, lsq
from qnas_jax.quant.nested import chosen_activations, mixed_activations

DEFAULT_BITS = 8
LEARNED = "learned_range"
# Pixels in [-1, 1) in steps of 1/128: the bytes of an image, exactly.
PIXEL_RANGE = (-1.0, 127 / 128)


def default_bits() -> Array:
    """The bitwidth of a fresh policy, int32."""
    return jnp.int32(DEFAULT_BITS)


def is_quantized(module: nn.Module, leaf: str) -> bool:
    """Whether a `quant` collection with that leaf is given, or calibration is making one."""
    if module.is_initializing():
        return False
    return module.is_mutable_collection("quant") or module.has_variable("quant", leaf)


class OnGrid(nn.Module):
    """A module whose output has its own grid: `a_bits` and `range` in `quant`.

    Attributes:
      fixed: A range that is known; calibration leaves it as it is.
    """

    fixed: tuple[float, float] | None = None

    def on_grid(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """`x` rounded to `a_bits`, or `x` itself without a `quant` collection."""
        if self.is_initializing():
            self.variable("quant", "a_bits", default_bits)
            self.variable("quant", "range", self._initial_range)
        for name, rounded in (("choice", chosen_activations), ("mixture", mixed_activations)):
            if self.has_variable("quant", name):
                relaxed = self.get_variable("quant", name)
                return rounded(x, relaxed["shares"], relaxed["bits"])
        if not is_quantized(self, "a_bits"):
            return x
        a_bits = self.variable("quant", "a_bits", default_bits).value
        if self.has_variable("quant", LEARNED):
            return lsq.fake_quant(x, self.get_variable("quant", LEARNED), a_bits)
        range_ = self.variable("quant", "range", self._initial_range)
        if self.is_mutable_collection("quant") and self.fixed is None:
            range_.value = calibrate.hull(range_.value, calibrate.min_max(x, a_bits))
        return affine.fake_quant(x, range_.value, a_bits)

    def _initial_range(self):
        return jnp.array(self.fixed or (0.0, 0.0), jnp.float32)


class FakeQuant(OnGrid):
    """Rounds a tensor to its grid; the identity without a `quant` collection."""

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """`x` at `a_bits`, or `x` itself."""
        return self.on_grid(x)
