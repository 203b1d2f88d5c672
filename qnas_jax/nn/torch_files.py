"""Reads the tensors of PyTorch's files, `.safetensors` and `.pth`, without PyTorch.

A `.pth` file holds a pickle and the numbers of its tensors. The pickle is never unpickled, so a
file can run nothing; see `torch_pickle.py`.

References:
  Formats: https://docs.pytorch.org/docs/stable/notes/serialization.html, `torch/serialization.py`.
"""

import io
import math
import pathlib
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from qnas_jax.errors import InputError
from qnas_jax.nn.torch_pickle import DTYPES, Call, Storage, follow, whole
from qnas_jax.run import disk

SUFFIXES = (".safetensors", ".pth", ".pt")

# The first pickles of a file of before PyTorch 1.6.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_DAMAGE = (
    *(EOFError, AttributeError, LookupError, RuntimeError, StopIteration, TypeError, ValueError),
    *(struct.error, zipfile.BadZipFile, NotImplementedError, MemoryError, OverflowError),
)


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a file by name; those of its `state_dict` where it has one.

    Args:
      path: A file with one of the `SUFFIXES`.

    Raises:
      InputError: The file is missing or damaged, holds no dict of tensors, or names a function
        that a checkpoint does not need.
    """
    content = disk.read(path)
    try:
        if path.suffix.lower() == ".safetensors":
            found = _safetensors(content)
        elif content[:4] == b"PK\x03\x04":
            found = _from_zip(content)
        else:
            found = _from_legacy(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except _DAMAGE as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(f"{path}: is no file of weights, or is damaged ({reason})") from None
    if not found:
        raise InputError(f"{path}: holds no tensors by name; save model.state_dict()")
    return found


def _safetensors(content: bytes) -> dict[str, np.ndarray]:
    import safetensors

    try:
        entries = safetensors.deserialize(content)
    except safetensors.SafetensorError as error:
        raise ValueError(error) from None
    return {
        name: np.frombuffer(bytes(entry["data"]), DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in entries
    }


def _from_zip(content: bytes) -> dict[str, np.ndarray]:
    """The format since PyTorch 1.6: a zip file with the pickle, and a file for each storage."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        (pickle_name,) = (n for n in archive.namelist() if n.split("/")[1:] == ["data.pkl"])
        root = pickle_name.removesuffix("data.pkl")
        if sum(info.file_size for info in archive.infolist()) > len(content):
            raise ValueError("its parts are larger than the file")
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("its numbers are big-endian")
        storages: dict[str, Storage] = {}
        tree = follow(io.BytesIO(_stored(archive, pickle_name)), storages)
        return _tensors(tree, lambda storage: _stored(archive, f"{root}data/{storage.key}"))


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of the archive. PyTorch compresses none, so none grows beyond the archive's size."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    return archive.read(name)


def _from_legacy(content: bytes) -> dict[str, np.ndarray]:
    """The format before PyTorch 1.6: five pickles, then the storages in the order of the last."""
    stream, storages = io.BytesIO(content), dict[str, Storage]()
    if follow(stream, storages) != _MAGIC or follow(stream, storages) != _PROTOCOL:
        raise ValueError("it does not begin like one")
    if not follow(stream, storages)["little_endian"]:
        raise ValueError("its numbers are big-endian")
    tree, keys, data = follow(stream, storages), follow(stream, storages), {}
    for key in keys:
        storage = storages[key]
        (count,) = struct.unpack("<q", stream.read(8))
        if count != storage.count:
            raise ValueError(f"storage {key} has {count} numbers, must have {storage.count}")
        data[key] = stream.read(count * storage.dtype.itemsize)
    return _tensors(tree, lambda storage: data[storage.key])


def _tensors(tree: Any, data: Callable[[Storage], bytes]) -> dict[str, np.ndarray]:
    """The tensors of a dict, or of the dict that it has as `state_dict` or `model`."""
    for inner in ("state_dict", "model"):
        if isinstance(tree, dict) and isinstance(tree.get(inner), dict):
            tree = tree[inner]
    if not isinstance(tree, dict):
        return {}
    held: dict[str, bytes] = {}
    found = {}
    for name, value in tree.items():
        if isinstance(value, Call) and value.function == "torch._utils._rebuild_parameter":
            value = value.arguments[0]
        rebuilt = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
        if isinstance(value, Call) and value.function in rebuilt:
            storage = value.arguments[0]
            if storage.key not in held:
                held[storage.key] = data(storage)
            found[str(name)] = _view(held[storage.key], *value.arguments[:4])
    return found


def _view(data: bytes, storage: Storage, offset: Any, shape: Any, strides: Any) -> np.ndarray:
    """A tensor; numpy refuses what lies outside of the storage."""
    sides, steps = (tuple(whole(n) for n in numbers) for numbers in (shape, strides))
    size = storage.dtype.itemsize
    if len(data) != storage.count * size or math.prod(sides) > storage.count:
        raise ValueError(f"storage {storage.key} has {len(data)} bytes, a tensor needs others")
    return np.ndarray(sides, storage.dtype, data, whole(offset) * size, [n * size for n in steps])
