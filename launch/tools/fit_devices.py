"""Fits what papers leave open about BISMO and BitFusion; predicts their other published figures.

    python launch/tools/fit_devices.py

Three constants are fitted, each to one figure, MobileNetV1's at `--bits`: the clock of either
BISMO device to a latency, the static power of BitFusion to an energy. All other figures are
predicted. The constants in qnas_jax/hardware/devices.py are those of `--bits=8`.
"""

from qnas_jax.run import platform

if __name__ == "__main__":
    platform.prepare_process()  # before all other imports

import numpy as np
from absl import flags

from qnas_jax.hardware import fit
from qnas_jax.run import cli

_BITS = flags.DEFINE_integer("bits", 8, "Bitwidth of MobileNetV1 that is fitted to: 4, 6 or 8.")


def main() -> None:
    """Fits, and prints each figure beside what the models say."""
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


if __name__ == "__main__":
    cli.start(main)
