"""The memory that a program needs on an accelerator, counted without a compiler or a device.

The operations of a program are walked in their order. An array is held from the operation that
makes it to the last one that reads it. Operations on single elements are taken to be fused into
their readers: their results are not stored, but what they were computed from is held as long. So
the count is that of a compiler which fuses all it can and packs memory without gaps: a lower bound
for most programs. XLA on a CPU allocates up to `FACTOR` times as much; on a GPU a library's scratch
memory and copies in other layouts come on top.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

_LOOPS = {"scan", "while", "cond"}
_REDUCTIONS = {"argmax", "argmin", *(f"reduce_{kind}" for kind in ("sum", "max", "min", "prod"))}
_REDUCTIONS |= {"reduce_and", "reduce_or"}
_IN_PLACE = {"scatter", "scatter-add", "dynamic_update_slice"}
# These read whole arrays from memory, not single elements.
_WHOLE = {"conv_general_dilated", "dot_general", "sort", "top_k", "psum", "cumsum", "cumprod"}
_WHOLE |= {"reduce_window", "reduce_window_sum", "reduce_window_max"} | _LOOPS | _IN_PLACE
# No reader computes these results again.
_STORED = _WHOLE | _REDUCTIONS | {"concatenate", "gather"}
_READ_WHOLE = _WHOLE | {"gather", "dynamic_slice"}
_SAME = {"reshape", "squeeze", "expand_dims", "transpose", "copy"}
_KEY_BYTES = 8  # of a PRNG key

FACTOR = 1.75  # between the count and what XLA allocates on a CPU; tests hold it


class Memory(NamedTuple):
    """The memory of a program in bytes.

    Attributes:
      arguments: What it is given: parameters, the optimizer's state, images.
      temporary: All else at its worst moment, results included.
    """

    arguments: int
    temporary: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.arguments + self.temporary


def of_program(
    function: Callable[..., Any], *arguments: Any, donated: Iterable[int] = ()
) -> Memory:
    """Counts the memory of a function's program.

    Args:
      function: A function that JAX can trace. Its kernels are in the form that is given, see
        `forms.given`.
      *arguments: Its arguments, or pytrees of `jax.ShapeDtypeStruct`.
      donated: The numbers of the arguments whose memory the program may use again.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    again = set(donated)
    kept = [i not in again for i, tree in enumerate(arguments) for _ in jax.tree.leaves(tree)]
    given = sum(_bytes(var) for var in jaxpr.invars)
    return Memory(given, max(_peak(jaxpr, kept) - given, 0))


class _Step(NamedTuple):
    """An operation; arrays are numbers."""

    name: str
    reads: list[int]
    makes: list[int]
    extra: int  # bytes that it holds besides both, e.g. in the body of a loop


class _Program:
    """The operations of a jaxpr, those of the functions that it calls in their place.

    Attributes:
      sizes: Bytes of each array, by its number.
      steps: The operations in their order.
      inputs: The arrays that are given, constants among them.
      results: Those that are returned.
    """

    def __init__(self, jaxpr: Any):
        self.sizes: list[int] = []
        self.steps: list[_Step] = []
        self.inputs = [self._new(var) for var in (*jaxpr.constvars, *jaxpr.invars)]
        self.results = self._add(jaxpr, self.inputs)

    def _new(self, var: Any) -> int:
        self.sizes.append(_bytes(var))
        return len(self.sizes) - 1

    def _add(self, jaxpr: Any, inputs: list[int]) -> list[int]:
        """Adds the operations of a jaxpr that reads these arrays; returns its results."""
        numbers = dict(zip((*jaxpr.constvars, *jaxpr.invars), inputs, strict=True))

        def number(var):
            return self._new(var) if isinstance(var, core.Literal) else numbers[var]

        for eqn in jaxpr.eqns:
            name, reads = eqn.primitive.name, [number(var) for var in eqn.invars]
            called = None if name in _LOOPS else _called(eqn)
            if called is not None:
                constants = [self._new(var) for var in called.constvars]
                made = self._add(called, [*constants, *reads])
            elif name in _SAME:
                made = reads[:1]
            else:
                made = [self._new(var) for var in eqn.outvars]
                self.steps.append(_Step(name, reads, made, _extra(eqn)))
            numbers.update(zip(eqn.outvars, made, strict=True))
        return [number(var) for var in jaxpr.outvars]


def _peak(jaxpr: Any, kept: list[bool]) -> int:
    """The most bytes that are held at once, the inputs included.

    Args:
      jaxpr: A program.
      kept: Of each input, whether it is held from the beginning to the end.
    """
    program = _Program(jaxpr)
    sizes, steps = program.sizes, program.steps
    stored = {*program.inputs, *program.results}
    stored |= {array for step in steps if step.name in _STORED for array in step.makes}
    stored |= {array for step in steps if step.name in _READ_WHOLE for array in step.reads}
    flags = [True] * len(jaxpr.constvars) + kept
    forever = {array for array, flag in zip(program.inputs, flags, strict=True) if flag}
    dead = _dead_after(steps, stored, forever.union(program.results))
    total = peak = sum(sizes[array] for array in set(program.inputs))
    for place, step in enumerate(steps):
        made = sum(sizes[array] for array in step.makes if array in stored)
        freed = sum(sizes[array] for array in dead.get(place, ()))
        # The result of an operation by elements may take the place of what it reads.
        reused = min(made, freed) if step.name not in _STORED - _IN_PLACE else 0
        peak = max(peak, total + made - reused + step.extra)
        total += made - freed
    return peak


def _dead_after(steps: list[_Step], stored: set[int], forever: set[int]) -> dict[int, list[int]]:
    """The arrays that no operation reads after this one, by its place."""
    sources: dict[int, frozenset[int]] = {array: frozenset([array]) for array in stored}
    last: dict[int, int] = {}
    for place, step in enumerate(steps):
        read = frozenset().union(*(sources.get(array, frozenset()) for array in step.reads))
        for array in step.makes:
            sources.setdefault(array, read)
        if any(array in stored for array in step.makes):
            last.update(dict.fromkeys((*read, *step.makes), place))
    ends = {array: place for array, place in last.items() if array not in forever}
    by_place = sorted(ends, key=lambda array: ends[array])
    return {place: list(group) for place, group in itertools.groupby(by_place, lambda a: ends[a])}


def _called(eqn: Any) -> Any:
    """The jaxpr of a function that is called, as a part of the program; None if none is."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        found = eqn.params.get(name)
        if found is not None:
            return getattr(found, "jaxpr", found)
    return None


def _extra(eqn: Any) -> int:
    """What a loop or a conditional holds besides what it reads and makes."""
    match eqn.primitive.name:
        case "scan":
            bodies = [eqn.params["jaxpr"]]
        case "while":
            bodies = [eqn.params["body_jaxpr"]]
        case "cond":
            bodies = eqn.params["branches"]
        case _:
            return 0
    outside = eqn.params.get("num_consts", len(eqn.invars)) + eqn.params.get("num_carry", 0)
    extra = max(_body(body.jaxpr, outside) for body in bodies)
    if eqn.primitive.name == "cond":  # its results are those of a branch
        extra -= sum(map(_bytes, eqn.outvars))
    return max(extra, 0)


def _body(jaxpr: Any, outside: int) -> int:
    """The most bytes of a body without its first inputs, which are stored outside of it."""
    peak = _peak(jaxpr, [True] * len(jaxpr.invars))
    return peak - sum(_bytes(var) for var in jaxpr.invars[:outside])


def _bytes(var: Any) -> int:
    aval = var.aval
    if not hasattr(aval, "shape"):
        return 0
    key = jnp.issubdtype(aval.dtype, jax.dtypes.prng_key)
    return aval.size * (_KEY_BYTES if key else aval.dtype.itemsize)
