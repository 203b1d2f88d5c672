"""Which subnets an audit trains: from the front, of nearly equal size, and at random."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from qnas_jax import space
from qnas_jax.bwnas.lut.table import Table
from qnas_jax.search import front
from qnas_jax.search.front import Point

DRAWS = 20_000  # subnets among which those of nearly equal size are found
MIXED = "mixed"  # the bitwidths of a subnet whose blocks differ in them


class Drawn(NamedTuple):
    """A subnet that is trained.

    Attributes:
      kind: "largest", "smallest", "front", "equal size" or "random".
      subnet: The subnet.
    """

    kind: str
    subnet: space.Subnet


def draw(
    rows: Table,
    points: Sequence[Point],
    fixed_bytes: int | float,
    count: int,
    band: float,
    seed: int,
) -> list[Drawn]:
    """Returns different subnets of a table.

    The draw does not look at the NSR, but for those of the front: subnets that were chosen by a
    score would flatter or spoil its ranking.

    Args:
      rows: The table.
      points: The front of the NSR and the size.
      fixed_bytes: Bytes of what is in no block.
      count: Number of subnets, fewer if the space has fewer.
      band: Share by which those of nearly equal size differ at most.
      seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    kinds = {
        "largest": _extreme(rows, np.argmax),
        "smallest": _extreme(rows, np.argmin),
        "front": (space.parse_subnet(p.subnet) for p in front.spread(points, count // 4)),
        "equal size": _in_band(rng, rows, points, fixed_bytes, band),
        "random": _random(rng, rows),
    }
    most = {"equal size": count // 4, "random": count}
    found: dict[space.Subnet, Drawn] = {}
    for kind, subnets in kinds.items():
        new = (subnet for subnet in subnets if subnet not in found)
        left = min(most.get(kind, count), count - len(found))
        for subnet in itertools.islice(new, left):
            found.setdefault(subnet, Drawn(kind, subnet))
    return list(found.values())


def bits_of(subnet: space.Subnet) -> str:
    """Returns the bitwidths of a subnet as text, "w8a8" or `MIXED`."""
    pairs = {(choice.w_bits, choice.a_bits) for block in subnet for choice in block}
    return "w{}a{}".format(*pairs.pop()) if len(pairs) == 1 else MIXED


def subnet_at(rows: Table, places: np.ndarray) -> space.Subnet:
    """Returns the subnet of a row of each block."""
    return tuple(rows.choices(place) for place in places)


def _extreme(rows: Table, pick) -> Iterator[space.Subnet]:
    """The subnet of the most or fewest bytes."""
    sizes = rows.costs["size_bytes"]
    own = [usable(rows, block) for block in range(rows.blocks)]
    yield subnet_at(rows, np.array([o[pick(sizes[o])] for o in own]))


def usable(rows: Table, block: int) -> np.ndarray:
    """Returns the rows of a block that have a finite NSR."""
    own = rows.rows_of(block)
    return own[np.isfinite(rows.nsr[own])]


def _drawn_rows(rng: np.random.Generator, rows: Table, count: int) -> np.ndarray:
    """Random rows of each block, int[count, blocks]."""
    own = [rng.choice(usable(rows, block), count) for block in range(rows.blocks)]
    return np.stack(own, axis=1)


def _in_band(rng, rows, points, fixed_bytes, band) -> Iterator[space.Subnet]:
    """Random subnets about as large as one in the middle of the front."""
    sizes = sorted(point.costs["size_bytes"] for point in points)
    middle = (sizes[0] + sizes[-1]) / 2
    places = _drawn_rows(rng, rows, DRAWS)
    total = fixed_bytes + rows.costs["size_bytes"][places].sum(axis=1)
    for row in places[np.abs(total - middle) <= band / 2 * middle]:
        yield subnet_at(rows, row)


def _random(rng: np.random.Generator, rows: Table) -> Iterator[space.Subnet]:
    """Random subnets; each pair of bitwidths in turn for all blocks, then any for each block."""
    bits = [(rows.w_bits[:, 0] == w) & (rows.a_bits[:, 0] == a) for w, a in rows.bits]
    alike = (rows.w_bits == rows.w_bits[:, :1]) & (rows.a_bits == rows.a_bits[:, :1])
    whole = (alike | (rows.path < 0)).all(axis=1)
    kinds = [*(of & whole for of in bits), np.ones(len(rows.path), bool)]
    for turn in range(DRAWS):
        allowed = kinds[turn % len(kinds)]
        own = [usable(rows, block) for block in range(rows.blocks)]
        own = [places[allowed[places]] for places in own]
        if all(map(len, own)):
            yield subnet_at(rows, np.array([rng.choice(places) for places in own]))
