"""One tensor of weights for all bitwidths: codes of fewer bits are leading bits of the 8-bit codes.

With ``s = 8 - bits``, the code of `bits` bits is ``(code + 2**(s - 1)) >> s``, that of 8 bits plus
half a step, shifted; and its scale is ``2**s`` times the scale of 8 bits. The highest code would be
above the symmetric grid and is clipped to it. A memory that holds 8-bit codes so holds all others.

Nested codes reach 0.50 of the largest weight at 2 bits, 0.76 at 3, 0.88 at 4 and 0.98 at 6. Against
weights that are quantized for each bitwidth by itself (`affine.fake_quant_weight`), the squared
error of 512 normal weights a channel is 0.34 times as large at 2 bits, 0.59 at 3, 0.81 at 4, 1.14
at 6 and 1.72 at 7, since they are rounded twice (`tests/quant/test_nested.py`).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qnas_jax.quant import affine, calibrate

MOST = 8  # bits of the stored codes

# Of the full range of an activation, by bitwidth: the fraction with the least squared error
# (`calibrate.mse`) for 4096 values of a normal distribution after a ReLU.
SHARES = (1.0, 1.0, 0.55, 0.7, 0.8, 0.85, 0.95, 1.0, 1.0)


def leading_codes(codes: Int[Array, "*shape"], bits: Int[Array, ""]) -> Int[Array, "*shape"]:
    """Returns the codes of fewer bits within 8-bit codes, int32.

    Args:
      codes: Symmetric codes of 8 bits, in ``[-127, 127]``.
      bits: Bitwidth in ``[2, 8]``; an array, so it can be traced and vmapped.
    """
    shift = MOST - bits
    half = (jnp.int32(1) << shift) >> 1  # 0 where nothing is shifted out
    most = (jnp.int32(1) << (bits - 1)) - 1
    return jnp.clip((codes.astype(jnp.int32) + half) >> shift, -most, most)


@jax.custom_jvp
def _rounded(w, bits):
    codes, scale = affine.weight_codes(w, jnp.int32(MOST))
    found = leading_codes(codes.astype(jnp.int32), bits).astype(jnp.float32)
    return affine.dequantize(found, scale * (jnp.int32(1) << (MOST - bits)), 0.0)


@_rounded.defjvp
def _rounded_jvp(primals, tangents):
    return _rounded(*primals), tangents[0]


@jax.jit
def nested(
    w: Float[Array, "*shape channels"], bits: Int[Array, ""]
) -> Float[Array, "*shape channels"]:
    """Rounds weights to the values of their nested codes, symmetric by output channel.

    Args:
      w: Weights in real units; output channels last.
      bits: Bitwidth in ``[2, 8]``; an array, so it can be traced and vmapped.

    Returns:
      The values. `affine.fake_quant_weight` of them gives the same codes, so they can be exported
      as any weights. The gradient is 1.
    """
    return _rounded(w, bits)


@jax.custom_vjp
def chosen_weights(
    w: Float[Array, "*shape channels"],
    shares: Float[Array, "choices"],
    bits: Int[Array, "choices"],
    damping: Float[Array, ""] | float = 0.0,
) -> Float[Array, "*shape channels"]:
    """Returns the nested values at the bitwidth of the largest share.

    Weights of few bits oscillate between two values during training. Damping pulls them to the
    value that they have: it adds ``damping / 2 * sum((w - value)**2)`` to the loss.

    Args:
      w: Weights in real units; output channels last.
      shares: One-hot.
      bits: The bitwidths.
      damping: Weight of the pull.

    Returns:
      The values. The gradient is 1 for `w`, and that of damping; for each share, that of the sum of
      the values at all bitwidths, weighted by shares (`mixed_weights`).

    References:
      Nagel et al., 2022, https://arxiv.org/abs/2203.11086, eq. 5 (damping).
    """
    del damping
    return _rounded(w, bits[jnp.argmax(shares)])


def _chosen_weights_fwd(w, shares, bits, damping):
    values = _rounded(w, bits[jnp.argmax(shares)])
    return values, (w, values, bits, damping)


def _chosen_weights_bwd(saved, gradient):
    w, values, bits, damping = saved
    of_shares = jax.lax.map(lambda b: jnp.vdot(gradient, _rounded(w, b)), bits)
    return gradient + damping * (w - values), of_shares, None, None


chosen_weights.defvjp(_chosen_weights_fwd, _chosen_weights_bwd)


def mixed_weights(
    w: Float[Array, "*shape channels"],
    shares: Float[Array, "choices"],
    bits: Int[Array, "choices"],
) -> Float[Array, "*shape channels"]:
    """Returns the sum of the nested values at several bitwidths, weighted by shares.

    Args:
      w: Weights in real units; output channels last.
      shares: Weight of each bitwidth.
      bits: The bitwidths.
    """
    return sum(share * nested(w, b) for share, b in zip(shares, bits, strict=True))  # pyright: ignore


@jax.custom_vjp
def chosen_activations(
    x: Float[Array, "*shape"], shares: Float[Array, "choices"], bits: Int[Array, "choices"]
) -> Float[Array, "*shape"]:
    """Returns activations rounded at the bitwidth of the largest share.

    The range is that of the values themselves, times the constant of the bitwidth in `SHARES`.

    Args:
      x: Values in real units.
      shares: One-hot.
      bits: The bitwidths.

    Returns:
      The values. The gradient is 1 for `x` inside the range and 0 where it is clipped; for each
      share, that of the sum of the values at all bitwidths, weighted by shares
      (`mixed_activations`).
    """
    return _at(x, calibrate.min_max(x, jnp.int32(MOST)), bits[jnp.argmax(shares)])


def _at(x, whole, bits):
    return affine.fake_quant(x, whole * jnp.asarray(SHARES)[bits], bits)


def _chosen_activations_fwd(x, shares, bits):
    whole = calibrate.min_max(x, jnp.int32(MOST))
    return _at(x, whole, bits[jnp.argmax(shares)]), (x, whole, shares, bits)


def _chosen_activations_bwd(saved, gradient):
    x, whole, shares, bits = saved
    # A sum for each bitwidth, not `vdot` or a loop: XLA fuses sums with the computation of `x`
    # from the output of its convolution, so that no copy of it is kept (105 instead of 125 MB for
    # a step of the network of configs/hqnas_objects.py).
    of_shares = jnp.stack([jnp.sum(gradient * _at(x, whole, b)) for b in bits])
    _, back = jax.vjp(lambda x: _at(x, whole, bits[jnp.argmax(shares)]), x)
    return back(gradient)[0], of_shares, None


chosen_activations.defvjp(_chosen_activations_fwd, _chosen_activations_bwd)


def mixed_activations(
    x: Float[Array, "*shape"], shares: Float[Array, "choices"], bits: Int[Array, "choices"]
) -> Float[Array, "*shape"]:
    """Returns the sum of activations rounded at several bitwidths, weighted by shares.

    Ranges are those of `chosen_activations`.

    Args:
      x: Values in real units.
      shares: Weight of each bitwidth.
      bits: The bitwidths.
    """
    whole = jax.lax.stop_gradient(calibrate.min_max(x, jnp.int32(MOST)))
    each = zip(shares, bits, strict=True)
    return sum(share * _at(x, whole, b) for share, b in each)  # pyright: ignore
