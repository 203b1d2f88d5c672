"""What batch norms and biases make good of a quantization.

Rounding shifts the mean of a convolution's output and changes its variance. A norm can take both
from the quantized network (`settled`), or have the shift of the mean alone taken off (`corrected`).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from qnas_jax.kernels.convolution import NORM_EPSILON
from qnas_jax.nn.conv import ConvBnAct, Norm
from qnas_jax.nn.policy import at
from qnas_jax.nn.units import pixels


def gain(params: PyTree, stats: PyTree, name: str) -> Any:
    """Returns the magnitude by which a norm multiplies each output channel, in the given type.

    Args:
      params: Of the network, NumPy's or JAX's.
      stats: Its `batch_stats`.
      name: Of a convolution; without a norm it is multiplied by 1.
    """
    own = at(params, name)
    if "norm" not in own:
        return np.ones(own["kernel"].shape[-1], own["kernel"].dtype)
    return abs(own["norm"]["scale"]) / (at(stats, name)["norm"]["var"] + NORM_EPSILON) ** 0.5


def settled(model: nn.Module, variables: PyTree, images: Any) -> PyTree:
    """Returns batch-norm statistics of some images, of the network as it is.

    Args:
      model: The network.
      variables: All that it reads; with `quant` it is quantized.
      images: uint8[n, h, w, 3].
    """
    new: Any = model.apply(variables, pixels(images), mutable=["batch_stats"])[1]
    return new["batch_stats"]


def corrected(
    model: nn.Module, variables: PyTree, quant: PyTree, images: np.ndarray, plain: PyTree
) -> PyTree:
    """Returns the variables with the shifts of all means taken off (bias correction).

    The mean over images and pixels that each channel of a convolution has in float is given to it
    in the quantized network, layer by layer, so that each reads what the corrected ones before it
    give.

    Args:
      model: The network.
      variables: Its `params` and `batch_stats`.
      quant: Its policy with ranges.
      images: uint8[n, h, w, 3].
      plain: The variables of the network in float.

    References:
      Nagel et al., 2019, https://arxiv.org/abs/1906.04721, section 4.2 (eq. 16; measured on images
      as in their appendix D).
    """

    @jax.jit
    def shifts(variables, quant, images, plain):
        before = _means(model, plain, images, None)
        after = _means(model, {**variables, "quant": quant}, images, before)
        return jax.tree.map(jnp.subtract, after, before)

    params, stats = (
        jax.tree.map(np.asarray, variables[kind]) for kind in ("params", "batch_stats")
    )
    for name, shift in jax.device_get(shifts(variables, quant, images, plain)).items():
        if own := at(stats, name):
            own["mean"] = own["mean"] + shift
        else:
            at(params, name)["bias"] = at(params, name)["bias"] - shift
    return {"params": params, "batch_stats": stats}


def _means(model, variables, images, wanted: dict | None) -> dict[str, Array]:
    """The mean of what each norm reads, and each convolution without a norm gives, by channel.

    With wanted means, each is given the wanted one before the network goes on.
    """
    means: dict[str, Array] = {}

    def watch(call, args, kwargs, context):
        module = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if isinstance(module, Norm):
            return call(_noted(means, module, args[0], wanted), *args[1:], **kwargs)
        out = call(*args, **kwargs)
        plain = isinstance(module, ConvBnAct) and not module.norm
        return _noted(means, module, out, wanted) if plain else out

    with nn.intercept_methods(watch):
        model.apply(variables, pixels(images))
    return means


def _noted(means, module, x, wanted):
    name = "/".join(module.path)
    means[name] = jnp.mean(x, (0, 1, 2))
    if wanted is None:
        return x
    return x + (wanted[name] - means[name])[None, None, None]
