"""What the cells of a table hold: each function reads one, or raises ValueError."""

import math
import re
from collections.abc import Callable, Collection

# `float` also reads 1_000 and nan, which are not figures.
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def text(pattern: str | re.Pattern[str]) -> Callable[[str], str]:
    """A reader of texts of this form."""

    def parse(cell):
        if not re.fullmatch(pattern, cell):
            raise ValueError(cell)
        return cell

    return parse


def whole(cell: str) -> int:
    """A whole number from 1."""
    if not (cell.isascii() and cell.isdigit() and int(cell) >= 1):
        raise ValueError(cell)
    return int(cell)


def one_of(allowed: Collection[int]) -> Callable[[str], int]:
    """A reader of some whole numbers."""

    def parse(cell):
        if whole(cell) not in allowed:
            raise ValueError(cell)
        return int(cell)

    return parse


def above_zero(cell: str) -> float:
    """A finite number above 0."""
    value = from_zero(cell)
    if not value:
        raise ValueError(cell)
    return value


def from_zero(cell: str) -> float | None:
    """A finite number from 0, or None for an empty cell."""
    if not cell:
        return None
    if not (_DECIMAL.fullmatch(cell) and 0 <= float(cell) < math.inf):
        raise ValueError(cell)
    return float(cell)
