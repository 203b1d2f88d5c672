"""What a policy costs on each target, and which budgets it has to meet."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qnas_jax import hardware
from qnas_jax.errors import InputError
from qnas_jax.haq.env import Layers
from qnas_jax.hardware import layer_table, size
from qnas_jax.hardware.target import check_per_channel, check_w_bits
from qnas_jax.search import allocation
from qnas_jax.search.allocation import Choices
from qnas_jax.space import COSTS, LEAST_BITS, MOST_BITS, Conv

TABLE = "table"  # the device of haq.table


class Goal(NamedTuple):
    """A cost on a device, and its bound.

    Attributes:
      device: Name of the device.
      cost_name: One of `space.COSTS`.
      title: The budget as the config has it, "4" or "0.6".
      choices: Bounds of the bitwidths, the cost, and the budget in its unit.
    """

    device: str
    cost_name: str
    title: str
    choices: Choices

    def __str__(self) -> str:
        return f"{self.device}, {COSTS[self.cost_name].title} of {shown_budget(self.title)}"


def shown_budget(title: str) -> str:
    """A budget in words."""
    return f"{title} bits" if float(title) >= 1 else f"{100 * float(title):g} % of 8 bits"


def goals(
    targets: Sequence[str],
    budgets: Sequence[float],
    table: str,
    convs: Sequence[Conv],
    layers: Layers,
    kmeans: bool,
) -> list[Goal]:
    """Returns the goals of a search, all budgets of a target after each other.

    Args:
      targets: DEVICE:COST.
      budgets: The cost of so many bits everywhere, or a share of that at the most bits.
      table: The file of measured layers; "" for none.
      convs: The convolutions of the network.
      layers: Their bounds.
      kmeans: Whether weights are shared, which changes their size.

    Raises:
      InputError: A device or its cost is not known, or no policy meets a budget.
    """
    found = []
    for target in targets:
        device, _, name = target.partition(":")
        cost = kmeans_cost(convs) if kmeans else cost_of(device, name, table, convs, layers)
        least, most, lead = (np.asarray(x) for x in (layers.least, layers.most, layers.lead))
        unbound = Choices(least, most, lead, cost, np.inf)
        lowest = float(allocation.costs_of(cost, least))
        for budget in budgets:
            bits, share = (int(budget), 1.0) if budget >= 1 else (MOST_BITS, budget)
            same = allocation.same_bits(unbound, bits)
            bound = float(share * allocation.costs_of(cost, same))
            if bound <= 0:
                raise InputError(f"haq.targets: {target!r} costs nothing, so it bounds nothing")
            if lowest > bound * (1 + 1e-9):
                raise InputError(
                    f"haq.budgets={tuple(budgets)}: {budget:g} is {_shown(bound, name)} on "
                    f"{device}, but the smallest bitwidths have {_shown(lowest, name)}"
                )
            found.append(Goal(device, name, f"{budget:g}", unbound._replace(budget=bound)))
    return found


def _shown(value: float, name: str) -> str:
    cost = COSTS[name]
    return f"{value / cost.per_shown_unit:.4g} {cost.shown_unit}"


def cost_of(
    device: str, name: str, table: str, convs: Sequence[Conv], layers: Layers
) -> np.ndarray:
    """Returns a cost of each convolution, float64[layers, w_bits, a_bits] by the bitwidths.

    Fewer bits never cost more: a layer may run as one of more bits where that is cheaper, as on
    BitFusion, whose tiles fit some bitwidths better. Pairs that a layer cannot have are infinite.

    Raises:
      InputError: The device is not known, does not know the cost, or its table lacks a layer.
    """
    bits = [(w, a) for w in _BITS for a in _BITS]
    if device == TABLE:
        if not table:
            raise InputError("haq.table='': must be the file of the device 'table'")
        held = _from_table(pathlib.Path(table), name, convs, layers)
    else:
        if device not in hardware.TARGETS:
            known = ", ".join((*hardware.TARGETS, TABLE))
            raise InputError(f"haq.targets: {device!r} is no device; there are {known}")
        target = hardware.named(device)
        try:
            check_w_bits(target, "a policy of HAQ", (MOST_BITS,))
            check_per_channel(target, "a network of HAQ")
        except InputError as error:
            raise InputError(str(error).replace("hardware.target", "haq.targets")) from None
        if name != "size_bytes" and name not in target.costs:
            known = ", ".join(("size_bytes", *target.costs))
            raise InputError(f"haq.targets: {device!r} does not know {name!r}; it knows {known}")
        given = [hardware.given(conv.name, (conv,)) for conv in convs]
        held = hardware.cost_matrix(target, given, bits)[name][:, 0]
    found = np.full((len(convs), MOST_BITS + 1, MOST_BITS + 1), np.inf)
    for column, (w_bits, a_bits) in enumerate(bits):
        found[:, w_bits, a_bits] = held[:, column]
    for axis in (1, 2):  # from the most bits down
        found = np.flip(np.minimum.accumulate(np.flip(found, axis), axis), axis)
    found[:, :LEAST_BITS] = found[:, :, :LEAST_BITS] = np.inf
    return found


_BITS = range(LEAST_BITS, MOST_BITS + 1)


def _from_table(path, name, convs, layers: Layers) -> np.ndarray:
    """The costs of a table; those of bitwidths that a layer cannot have are infinite."""
    bits = [(w, a) for w in _BITS for a in _BITS]
    found = np.full((len(convs), len(bits)), np.inf)
    bounds = zip(convs, np.asarray(layers.least), np.asarray(layers.most), strict=True)
    for row, (conv, least, most) in enumerate(bounds):
        places = [
            i for i, pair in enumerate(bits) if (least <= pair).all() and (pair <= most).all()
        ]
        found[row, places] = layer_table.costs(path, name, [conv.name], [bits[i] for i in places])
    return found


def kmeans_cost(convs: Sequence[Conv]) -> np.ndarray:
    """Returns the bytes of each convolution with shared weights; activations cost nothing."""
    w_bits = np.arange(1, MOST_BITS + 1)
    found = np.full((len(convs), MOST_BITS + 1, MOST_BITS + 1), np.inf)
    for row, conv in enumerate(convs):
        found[row, 1:] = np.asarray(size.kmeans_bytes(conv, w_bits))[:, None]
    return found
