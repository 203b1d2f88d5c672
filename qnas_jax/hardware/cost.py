"""What a convolution costs on a device: picks the model by the kind of device."""

from qnas_jax.errors import InputError
from qnas_jax.hardware import bismo, bitfusion, roofline
from qnas_jax.hardware.counts import Values
from qnas_jax.hardware.devices import Bismo, BitFusion, Roofline
from qnas_jax.space import Conv

Device = Roofline | Bismo | BitFusion


def latency_ms(device: Device, conv: Conv, w_bits, a_bits) -> Values:
    """Milliseconds of a convolution for one image; on BISMO for one batch.

    Args:
      device: An instance of `devices`.
      conv: The convolution.
      w_bits: Bitwidths of weights, an int or an array.
      a_bits: Bitwidths of activations, an int or an array; both broadcast.
    """
    match device:
        case Roofline():
            return roofline.latency_ms(device, conv, w_bits, a_bits)
        case Bismo():
            return bismo.latency_ms(device, conv, w_bits, a_bits)
        case BitFusion():
            return bitfusion.latency_ms(device, conv, w_bits, a_bits)


def energy_mj(device: Device, conv: Conv, w_bits, a_bits) -> Values:
    """Millijoules of a convolution for one image; arguments as for `latency_ms`.

    Raises:
      InputError: This device's energy was not published.
    """
    if isinstance(device, BitFusion):
        return bitfusion.energy_mj(device, conv, w_bits, a_bits)
    raise InputError(
        f"{type(device).__name__}: its energy is not known; take BitFusion, or measure it"
    )
