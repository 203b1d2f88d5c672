"""Rules of settings; each raises InputError with the value and the rule."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from qnas_jax.errors import InputError


def same_types(prefix: str, given: Any, default: Any) -> None:
    """Every value of a dataclass has the type that its default has, and is finite."""
    for field in dataclasses.fields(default):
        name = f"{prefix}{field.name}"
        value, like = getattr(given, field.name), getattr(default, field.name)
        if dataclasses.is_dataclass(like):
            same_types(f"{name}.", value, like)
            continue
        many = isinstance(like, tuple)
        if many and not isinstance(value, (tuple, list)):
            raise InputError(f"{name}={value!r}: must be a tuple, like {like}")
        if like == ():  # its section checks what it may hold
            continue
        kind = type(like[0] if many else like)
        for one in value if many else (value,):
            if not _is(one, kind):
                raise InputError(f"{name}={value!r}: must be {_NAMES[kind]}")


_NAMES = {
    int: "whole numbers below 2**31",
    float: "finite numbers",
    str: "a text",
    bool: "True or False",
}


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind and (kind is not int or abs(value) < 2**31)


def at_least(name: str, value: int | float, least: int | float) -> None:
    """The value is no smaller than the least."""
    if not value >= least:
        raise InputError(f"{name}={value}: must be at least {least}")


def above_zero(name: str, value: float) -> None:
    """The value is above zero."""
    if not value > 0:
        raise InputError(f"{name}={value}: must be above 0")


def within(name: str, value: float, least: float, most: float) -> None:
    """The value is between two others, or is one of them."""
    if not least <= value <= most:
        raise InputError(f"{name}={value}: must lie in [{least}, {most}]")


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """The value is one of a few."""
    if value not in allowed:
        raise InputError(f"{name}={value!r}: must be {' or '.join(map(repr, allowed))}")


def length(name: str, values: tuple, length: int) -> None:
    """There are `length` values."""
    if len(values) != length:
        raise InputError(f"{name}={values}: must be {length} numbers")


def all_of(name: str, values: tuple, good: Callable[[Any], bool], rule: str) -> None:
    """There are values, and all are good."""
    if not values or not all(good(value) for value in values):
        raise InputError(f"{name}={values}: {rule}")


def distinct(name: str, values: tuple) -> None:
    """No value comes twice."""
    if len(set(values)) < len(values):
        raise InputError(f"{name}={values}: each only once")


def bounds(name: str, pairs: tuple, keys: tuple[str, ...], zero: bool = False) -> None:
    """The value is pairs of a key and a number above 0, no key twice; there may be none.

    Args:
      name: Of the setting.
      pairs: Its value.
      keys: Those that are allowed; with none, any name.
      zero: Whether the number may be 0, too.
    """
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InputError(
                f"{name}={pairs}: must be pairs, like (({(keys or ('car',))[0]!r}, 1.5),)"
            )
        key, bound = pair
        if not keys and not isinstance(key, str):
            raise InputError(f"{name}={pairs}: {key!r} must be a name")
        if keys and key not in keys:
            raise InputError(f"{name}={pairs}: {key!r} must be among {keys}")
        if not (_is(bound, float) and (bound > 0 or (zero and bound == 0))):
            rule = "of at least 0" if zero else "above 0"
            raise InputError(f"{name}={pairs}: {key!r} must have a number {rule}")
    if len({key for key, _ in pairs}) < len(pairs):
        raise InputError(f"{name}={pairs}: each name only once")


def training(name: str, section: Any) -> None:
    """The settings that every training has, in the section `name`."""
    at_least(f"{name}.steps", section.steps, 1)
    at_least(f"{name}.batch", section.batch, 1)
    within(f"{name}.momentum", section.momentum, 0.0, 0.999)
    above_zero(f"{name}.power", section.power)
    at_least(f"{name}.weight_decay", section.weight_decay, 0.0)
    one_of(f"{name}.compute", section.compute, ("float32", "bfloat16"))
    one_of(f"{name}.optimizer", section.optimizer, ("sgd", "adamw"))
    if not 0 <= section.warmup < section.steps:
        rule = f"must lie in [0, {name}.steps={section.steps})"
        raise InputError(f"{name}.warmup={section.warmup}: {rule}")
    if section.warmup and section.optimizer == "sgd":
        raise InputError(f"{name}.warmup={section.warmup}: must be 0 with {name}.optimizer='sgd'")
    at_least(f"{name}.clip", section.clip, 0)
