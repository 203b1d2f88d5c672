"""What a device runs, and what a piece of a network costs on it.

A `Target` is a description: the ops and bitwidths that the device runs, and a function for each
cost that is known. A new device is one more entry of `_MODELS`:

    Target("my_device", kernels=(3, 5), bits=((8, 8),), costs=of_model(MY, {"latency_ms": model}))

Ops and bitwidths that the target does not run never enter the search space.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from qnas_jax.errors import InputError
from qnas_jax.hardware import cost, devices
from qnas_jax.hardware.candidates import Candidate
from qnas_jax.space import MOST_BITS, Bits, Conv

FIXED_BITS = 8  # of all that is not searched: the stem, the first group, the head
GRANULARITIES = ("network", "block", "layer")  # what may have bitwidths of its own

# The cost of a candidate at some bitwidths of weights and of activations, int64[n] each:
# float64[n], or one number for all. NaN where the device does not run it.
CandidateCost: TypeAlias = Callable[[Candidate, np.ndarray, np.ndarray], Any]
# The cost of a convolution on a device, at some bitwidths of weights and of activations.
ConvCost: TypeAlias = Callable[[Any, Conv, np.ndarray, np.ndarray], Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A device. An empty field restricts nothing.

    Attributes:
      name: Its name.
      kernels: Kernels of depthwise convolutions that it runs.
      expansions: Expansions of inverted residuals that it runs.
      bits: Pairs of weights' and activations' bitwidths that it runs.
      granularity: The smallest part with bitwidths of its own, one of `GRANULARITIES`.
      per_channel: Whether weights have a scale for each output channel, or one for a layer.
      most_w_bits: The most bits of weights that it runs in any layer, searched or not.
      costs: The known ones of `space.COSTS`, by name; the size needs no target.
    """

    name: str
    kernels: tuple[int, ...] = ()
    expansions: tuple[int, ...] = ()
    bits: tuple[Bits, ...] = ()
    granularity: str = "layer"
    per_channel: bool = True
    most_w_bits: int = MOST_BITS
    costs: Mapping[str, CandidateCost] = dataclasses.field(default_factory=dict)

    @property
    def fixed_bits(self) -> Bits:
        """Bitwidths of all that is not searched: `FIXED_BITS`, or the most that it runs."""
        return min(FIXED_BITS, self.most_w_bits), FIXED_BITS


class Choices(NamedTuple):
    """What a search chooses from, before and after what a target does not run is left out."""

    kernels: tuple[int, ...]
    expansions: tuple[int, ...]
    bits: tuple[Bits, ...]


def runnable(target: Target, wanted: Choices) -> Choices:
    """The choices that a target runs, in their order; weights of too many bits get fewer.

    Raises:
      InputError: It runs none of the kernels, of the expansions or of the bitwidths.
    """
    bits = tuple(dict.fromkeys((min(w, target.most_w_bits), a) for w, a in wanted.bits))
    return Choices(
        _kept(target, "kernels", wanted.kernels),
        _kept(target, "expansions", wanted.expansions),
        _kept(target, "bits", bits),
    )


def _kept(target: Target, name: str, choices: tuple) -> tuple:
    runs = getattr(target, name)
    kept = tuple(choice for choice in choices if not runs or choice in runs)
    if not kept:
        raise InputError(
            f"target {target.name!r} runs none of the space's {name} {choices}; it runs {runs}"
        )
    return kept


def check_granularity(target: Target, bits: Sequence[Bits], bits_per: str) -> None:
    """Refuses bitwidths for smaller parts than the target runs them for.

    Args:
      target: The device.
      bits: The pairs to choose from.
      bits_per: What has bitwidths of its own, "block" or "layer".

    Raises:
      InputError: The target does not run that.
    """
    finer = GRANULARITIES.index(bits_per) > GRANULARITIES.index(target.granularity)
    if len(bits) > 1 and finer:
        if target.granularity == "block":
            way_out = "set space.bits_per=block"
        else:
            way_out = "give space.w_bits and space.a_bits one number each"
        raise InputError(
            f"target {target.name!r} has one pair of bitwidths for a {target.granularity}, "
            f"not for a {bits_per}: {way_out}"
        )


def check_w_bits(target: Target, what: str, bits: Sequence[int]) -> None:
    """Refuses bitwidths of weights that the target does not run.

    Args:
      target: The device.
      what: What has them, such as a setting.
      bits: The bitwidths.

    Raises:
      InputError: One has too many bits.
    """
    if max(bits) > target.most_w_bits:
        rule = f"weights have at most {target.most_w_bits} bits there, and {what} has {max(bits)}"
        raise InputError(f"hardware.target={target.name!r}: {rule}")


def check_per_channel(target: Target, what: str) -> None:
    """Refuses a target with one scale for all weights of a layer.

    Args:
      target: The device.
      what: What has a scale for each output channel.

    Raises:
      InputError: The target has one for a layer.
    """
    if not target.per_channel:
        rule = f"has one scale for all weights of a layer; {what} has one for each output channel"
        raise InputError(f"hardware.target={target.name!r} {rule}")


def check_knows(target: Target, costs: Sequence[str]) -> None:
    """Refuses costs that are not known for the target.

    Raises:
      InputError: One is not.
    """
    for name in costs:
        if name not in ("size_bytes", *target.costs):
            raise InputError(
                f"search.costs={tuple(costs)}: target {target.name!r} does not know {name!r}; "
                "set hardware.target or hardware.table"
            )


def of_model(device: Any, models: Mapping[str, ConvCost]) -> dict[str, CandidateCost]:
    """Costs of a device on which a candidate costs the sum over its convolutions.

    Args:
      device: The parameters of the models.
      models: The model of each known cost, by the cost's name in `space.COSTS`.
    """
    return {name: functools.partial(_summed, device, model) for name, model in models.items()}


def _summed(device: Any, model: ConvCost, candidate: Candidate, w_bits, a_bits):
    return sum(model(device, conv, w_bits, a_bits) for conv in candidate.convs)


NONE = Target("none")  # no device in mind: all is run, and only the size is known
_LATENCY = {"latency_ms": cost.latency_ms}
_MODELS = (
    # x86 without VNNI: sums of two products of bytes have 16 bits. 2 * 255 * 63 fits.
    Target("x86_avx2", most_w_bits=7),
    Target("per_tensor", per_channel=False),  # many NPUs
    Target("bismo_edge", costs=of_model(devices.BISMO_EDGE, _LATENCY)),
    # Of a batch of 16 images, as it was published.
    Target("bismo_cloud", costs=of_model(devices.BISMO_CLOUD, _LATENCY)),
    Target(
        "bitfusion",
        costs=of_model(devices.BITFUSION, {**_LATENCY, "energy_mj": cost.energy_mj}),
    ),
)
TARGETS: dict[str, Target] = {target.name: target for target in (NONE, *_MODELS)}


def named(name: str) -> Target:
    """The target of that name.

    Raises:
      InputError: There is none.
    """
    if name not in TARGETS:
        raise InputError(f"hardware.target={name!r}: must be {' or '.join(map(repr, TARGETS))}")
    return TARGETS[name]
