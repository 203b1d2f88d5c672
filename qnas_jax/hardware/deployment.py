"""A network's place on a device: enough to know the costs of every subnet, without the network.

A search writes it down, so that a finished run can be asked for other targets.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from qnas_jax.errors import InputError
from qnas_jax.hardware import candidates, matrix, measured
from qnas_jax.hardware import target as targets
from qnas_jax.hardware.candidates import Place
from qnas_jax.hardware.target import Target
from qnas_jax.run import artefacts
from qnas_jax.run.stage import read_json, unreadable
from qnas_jax.space import Bits, Conv, Op


class Deployment(NamedTuple):
    """A search space on a device, at one image size.

    Attributes:
      target: The device.
      places: Every layer of the search space.
      parts: The convolutions that are in no block, by part: "stem" within the encoder (from the
        image to the first block) and "head" after it.
    """

    target: Target
    places: tuple[Place, ...]
    parts: Mapping[str, Sequence[Conv]]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images, which the first convolution reads."""
        first = self.parts["stem"][0]
        return first.in_height, first.in_width, first.in_channels

    def matrix(self, ops: Sequence[Op], bits: Sequence[Bits]) -> dict[str, np.ndarray]:
        """What every layer costs with each of the ops: see `cost_matrix`."""
        return matrix.cost_matrix(self.target, candidates.layers(self.places, ops), bits)

    def fixed(self) -> dict[str, dict[str, int | float]]:
        """What the parts cost that are in no block: see `fixed_costs`."""
        return matrix.fixed_costs(self.target, self.parts)


def device(name: str, table: str, where: Sequence[Place]) -> Target:
    """The target of that name, with its table of measurements.

    Args:
      name: One of `TARGETS`.
      table: The path of the table; empty for none.
      where: The places of the search space.

    Raises:
      InputError: There is no such target, or the table cannot be used.
    """
    found = targets.named(name)
    if table and found.most_w_bits < targets.FIXED_BITS:
        rule = f"not with hardware.target={name!r}, which does not run its stem and head of 8 bits"
        raise InputError(f"hardware.table={table!r}: {rule}")
    return measured.with_table(found, pathlib.Path(table), where) if table else found


def write(path: pathlib.Path, deployed: Deployment) -> None:
    """Writes a deployment as JSON."""
    fixed, target = deployed.fixed(), deployed.target
    content = {
        "target": target.name,
        "fixed_costs": {name: sum(fixed[name].values()) for name in target.costs},
        "fixed_convs": deployed.parts,
        "places": deployed.places,
    }
    artefacts.write_json(path, content)


def read(path: pathlib.Path, name: str, table: str) -> Deployment:
    """Reads a deployment for a target, which may be another one.

    Args:
      path: The file that `write` wrote.
      name: The target.
      table: The path of its table of measurements; empty for none.

    Raises:
      InputError: The file is missing or damaged, or the target cannot be used.
    """
    found = read_json(path, "places", "fixed_convs")
    try:
        where = tuple(Place(*place) for place in found["places"])
        parts = {
            part: [Conv(*conv) for conv in convs] for part, convs in found["fixed_convs"].items()
        }
    except (AttributeError, TypeError) as error:
        raise unreadable(path, error) from None
    return Deployment(device(name, table, where), where, parts)
