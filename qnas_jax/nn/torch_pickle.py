"""What a pickle of PyTorch builds, found out without unpickling it.

A pickle is a program that may call anything. `pickletools` splits it into instructions, and
those that build texts, numbers, lists and dicts are followed here. The name of a function stays
a name, and its call becomes a record (`Call`), so nothing of the file is imported or called.

References:
  https://github.com/python/cpython, `Lib/pickletools.py`, describes every instruction.
"""

import io
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from qnas_jax.errors import InputError

DTYPES = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U8": np.uint8, "BOOL": np.bool_},
}
_STORAGES = {
    **{"DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16"},
    **{"BFloat16Storage": "BF16", "LongStorage": "I64", "IntStorage": "I32"},
    **{"ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8", "BoolStorage": "BOOL"},
}
# Where checkpoints take their classes from. Other names are of no use in one.
_PACKAGES = {"torch", "collections", "numpy", "argparse", "pathlib", "_codecs", "copyreg"}
_PACKAGES |= {"mmengine", "mmcv", "mmseg", "timm"}
_BUILTINS = {"set", "frozenset", "list", "dict", "tuple", "int", "float", "str", "bytearray"}
_DICT = ("collections.OrderedDict", "builtins.dict", "__builtin__.dict")


class Name(NamedTuple):
    """A function or class that a pickle names: "torch._utils._rebuild_tensor_v2"."""

    text: str


class Call(NamedTuple):
    """A call that a pickle asks for, and that nobody makes."""

    function: str
    arguments: Any


class Storage(NamedTuple):
    """Numbers in a row, of which tensors are views."""

    key: str
    dtype: np.dtype
    count: int


_MARK = object()
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_FRESH: dict[str, Callable[[], Any]] = {
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
    **{"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": list},
    "MARK": lambda: _MARK,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def follow(stream: io.BytesIO, storages: dict[str, Storage]) -> Any:
    """What the next pickle of a stream builds, with records for calls.

    Args:
      stream: Stands at the pickle, afterwards behind it.
      storages: Storages by key; those that the pickle refers to are added.
    """
    stack, memo = [], {}
    for code, argument, _ in pickletools.genops(stream):
        name = code.name
        if name in _LITERALS:
            stack.append(argument)
        elif name in _FRESH:
            stack.append(_FRESH[name]())
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            _step(stack, name, argument, storages)
    raise EOFError("it ends too early")


def _step(stack: list, name: str, argument: Any, storages: dict[str, Storage]) -> None:
    """Follows one of the instructions that read what was built before."""
    match name:
        case "GLOBAL":
            stack.append(_name(*argument.split(" ", 1)))
        case "STACK_GLOBAL":
            function, module = stack.pop(), stack.pop()
            stack.append(_name(module, function))
        case "REDUCE" | "NEWOBJ":
            arguments, function = stack.pop(), stack.pop()
            empty = function.text in _DICT and not arguments
            stack.append({} if empty else Call(function.text, arguments))
        case "NEWOBJ_EX":
            _, arguments, function = stack.pop(), stack.pop(), stack.pop()
            stack.append(Call(function.text, arguments))
        case "BINPERSID":
            stack.append(_storage(stack.pop(), storages))
        case "BUILD" | "POP":
            stack.pop()  # of a state: that of an object that is not made
        case "TUPLE" | "LIST" | "FROZENSET":
            values = _since_mark(stack)
            stack.append(values if name == "LIST" else tuple(values))
        case "APPEND" | "APPENDS" | "ADDITEMS":
            values = [stack.pop()] if name == "APPEND" else _since_mark(stack)
            if isinstance(stack[-1], list):
                stack[-1].extend(values)
        case "DICT" | "SETITEM" | "SETITEMS":
            count = 2 if name == "SETITEM" else 0
            values = [stack.pop() for _ in range(count)][::-1] or _since_mark(stack)
            if name == "DICT":
                stack.append({})
            if isinstance(stack[-1], dict):  # other keys name no tensors, and may be slow to hash
                pairs = zip(values[::2], values[1::2], strict=True)
                stack[-1].update((k, v) for k, v in pairs if isinstance(k, (str, int)))
        case _:
            raise ValueError(f"has the instruction {name}")


def _since_mark(stack: list) -> list:
    """Takes what was pushed since the last mark."""
    start = next(i for i in range(len(stack) - 1, -1, -1) if stack[i] is _MARK)
    values = stack[start + 1 :]
    del stack[start:]
    return values


def _name(module: str, function: str) -> Name:
    package = module.split(".")[0]
    known = package in _PACKAGES
    if package in ("builtins", "__builtin__"):
        known = function in _BUILTINS
    if not known:
        text = f"{module}.{function}"
        raise InputError(
            f"refused, as PyTorch would call or import {text[:80]!r}; take a file of weights alone"
        )
    return Name(f"{module}.{function}")


def _storage(identity: Any, storages: dict[str, Storage]) -> Storage:
    """Reads ("storage", type, key, device, count, view); the last is missing, or None."""
    kind, type_, key, _, count, *view = identity
    package, _, name = type_.text.rpartition(".")
    torch = package in ("torch", "torch.cuda")
    if kind != "storage" or not torch or any(part is not None for part in view):
        raise ValueError("it refers to something that is no storage")
    found = Storage(str(key), np.dtype(DTYPES[_STORAGES[name]]), whole(count))
    if storages.setdefault(found.key, found) != found:
        raise ValueError(f"storage {found.key} is given twice")
    return found


def whole(number: Any) -> int:
    """The number, if it is a whole one from 0."""
    if type(number) is not int or number < 0:
        raise ValueError("a size is no whole number")
    return number
