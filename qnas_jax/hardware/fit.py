"""Fits a device's one open constant to one published figure, and predicts the others.

A latency is proportional to the inverse of the clock and an energy is linear in the static power,
so each fit is a division.
"""

import dataclasses
from typing import NamedTuple

from qnas_jax.errors import InputError
from qnas_jax.hardware import cost, devices, published
from qnas_jax.hardware.devices import Bismo, BitFusion
from qnas_jax.hardware.published import Figure

Accelerator = Bismo | BitFusion
# By the name of a device: the constant that is fitted, and the quantity that it is fitted to.
OPEN = {
    "BISMO_EDGE": ("clock_hz", "latency_ms"),
    "BISMO_CLOUD": ("clock_hz", "latency_ms"),
    "BITFUSION": ("static_w", "energy_mj"),
}


class Prediction(NamedTuple):
    """A published figure, and the same figure by the device's model."""

    figure: Figure
    value: float
    fitted: bool

    @property
    def error(self) -> float:
        """The signed error, relative to the published value."""
        return self.value / self.figure.value - 1


def fitted(bits: int) -> tuple[dict[str, Accelerator], list[Figure]]:
    """All devices, each fitted to MobileNetV1 at one bitwidth, and the figures that were used.

    Raises:
      InputError: A device has no figure at this bitwidth.
    """
    found, used = {}, []
    for name, (constant, quantity) in OPEN.items():
        start = (name, quantity, "mobilenet_v1", bits, bits)
        figure = next((f for f in published.FIGURES if f[: len(start)] == start), None)
        if figure is None:
            raise InputError(f"bits={bits}: must be 4, 6 or 8, which were published for {name}")
        found[name] = fit(getattr(devices, name), constant, figure)
        used.append(figure)
    return found, used


def predictions(bits: int) -> list[Prediction]:
    """All published figures, predicted by devices that were fitted at one bitwidth."""
    accelerators, used = fitted(bits)
    return [
        Prediction(figure, total(accelerators[figure.device], figure), figure in used)
        for figure in published.FIGURES
    ]


def total(device: Accelerator, figure: Figure) -> float:
    """A published figure by the model of the device."""
    of_conv = {"latency_ms": cost.latency_ms, "energy_mj": cost.energy_mj}[figure.quantity]
    convs = published.NETWORKS[figure.network]()
    return float(sum(of_conv(device, conv, figure.w_bits, figure.a_bits) for conv in convs))


def fit(device: Accelerator, constant: str, figure: Figure) -> Accelerator:
    """The device with its open constant set so that the model gives the published figure."""
    if constant == "clock_hz":
        clock_hz = device.clock_hz * total(device, figure) / figure.value
        return dataclasses.replace(device, clock_hz=clock_hz)
    rest_mj = figure.value - total(dataclasses.replace(device, static_w=0.0), figure)
    latency_ms = total(device, figure._replace(quantity="latency_ms"))
    return dataclasses.replace(device, static_w=rest_mj / latency_ms)
