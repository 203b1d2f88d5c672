"""Fits the open constants of BISMO and BitFusion; predicts their other published figures.

    qnas fit_devices

Three constants are fitted, each to one figure of MobileNetV1 at `--bits`: the clock of both BISMO
devices to a latency, the static power of BitFusion to an energy. All other figures are predicted.
The constants in qnas_jax/hardware/devices.py are those of `--bits=8`.
"""

import numpy as np
from absl import flags

from qnas_jax.hardware import fit

_BITS = flags.DEFINE_integer("bits", 8, "Fit to MobileNetV1 at this bitwidth: 4, 6 or 8.")


def main() -> None:
    """Fits the constants; prints each published figure next to the model's."""
    devices, _ = fit.fitted(_BITS.value)
    for name, device in devices.items():
        constant, quantity = fit.OPEN[name]
        print(f"{name}.{constant} = {getattr(device, constant):.4g}, from {quantity}")
    print(f"\n{'':48}published   model   error")
    errors = {}
    for found in fit.predictions(_BITS.value):
        figure, mark = found.figure, "  fitted" if found.fitted else ""
        print(f"{figure!s:48}{figure.value:9.2f}{found.value:8.2f}{found.error:+8.1%}{mark}")
        if not found.fitted:
            errors.setdefault(f"{figure.device} {figure.quantity}", []).append(abs(found.error))
    errors["all"] = [error for group in errors.values() for error in group]
    print(f"\n{'mean absolute error of what was predicted':48}  figures    mean largest")
    for name, group in errors.items():
        print(f"{name:48}{len(group):9}{np.mean(group):8.1%}{np.max(group):8.1%}")
