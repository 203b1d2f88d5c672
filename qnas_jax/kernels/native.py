"""Convolutions of bytes in C++, for CPUs whose vectors multiply bytes.

XLA's products of bytes are slower than those of floats; these are several times as fast. The
machine's C++ compiler compiles `native.cc` when it is first asked for, which takes 3 s. On
another CPU, or without a compiler, `available` is false.
"""

import ctypes
import functools
import hashlib
import importlib.metadata
import logging
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, UInt8

from qnas_jax.run import disk
from qnas_jax.run.platform import cache_folder

logger = logging.getLogger(__name__)

LANES = 16  # channels whose sums are a vector
GROUP = 4  # products that one instruction adds up

SOURCE = pathlib.Path(__file__).with_suffix(".cc")
FEATURES = ("avx512f", "avx512bw", "avx512vl", "avx512vnni")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", *(f"-m{name}" for name in FEATURES))
FUNCTIONS = ("qnas_jax_pointwise", "qnas_jax_depthwise")
SLOWER = "paths are scored several times more slowly"
COMPILE_S = 300


@functools.cache
def available() -> bool:
    """Whether this machine has these convolutions; compiles them where it can."""
    if not _cpu_multiplies_bytes():
        return False
    try:
        library = _loaded(_compiler())
        for name in FUNCTIONS:
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(library[name]), platform="cpu")
    except (OSError, AttributeError, RuntimeError, subprocess.SubprocessError) as error:
        logger.warning("no convolutions of bytes, so %s: %s", SLOWER, _reason(error))
        return False
    return True


def _cpu_multiplies_bytes() -> bool:
    """Whether the CPU has the instructions that `native.cc` is made of."""
    if platform.machine() != "x86_64" or not os.path.exists("/proc/cpuinfo"):
        return False
    with open("/proc/cpuinfo") as file:
        flags = next((line for line in file if line.startswith("flags")), "")
    return set(FEATURES) <= set(flags.replace("512_vnni", "512vnni").split())


def _compiler() -> list[str]:
    """The compiler's command: what CXX says, else the machine's own."""
    given, own = shlex.split(os.environ.get("CXX", "")), shutil.which("c++")
    if not given and own is None:
        raise FileNotFoundError("there is no C++ compiler (c++)")
    return given or [str(own)]


def _loaded(compiler: list[str]) -> ctypes.CDLL:
    """The library, from the cache folder; where there is none, compiled for this process alone."""
    if folder := cache_folder():
        return ctypes.CDLL(str(_compiled(compiler, folder)))
    with tempfile.TemporaryDirectory() as temporary:  # what is loaded stays without its file
        return ctypes.CDLL(str(_compiled(compiler, pathlib.Path(temporary))))


def _compiled(compiler: list[str], folder: pathlib.Path) -> pathlib.Path:
    """The library in a folder, compiled once for each version of all that goes into it."""
    versions = (compiler, FLAGS, importlib.metadata.version("jaxlib"))
    key = hashlib.sha256(SOURCE.read_bytes() + repr(versions).encode()).hexdigest()[:16]
    file = folder / f"native-{key}.so"
    if not _is_whole(file):
        # Several processes may compile at once: each its own file, whole when it gets its name.
        with tempfile.TemporaryDirectory(dir=folder) as part:
            made = pathlib.Path(part) / file.name
            headers = f"-I{jax.ffi.include_dir()}"
            command = [*compiler, *FLAGS, headers, str(SOURCE), "-o", str(made)]
            subprocess.run(
                command, check=True, capture_output=True, errors="replace", timeout=COMPILE_S
            )
            code = made.read_bytes()
            made.write_bytes(code + hashlib.sha256(code).digest())
            made.replace(file)
    return file


def _is_whole(file: pathlib.Path) -> bool:
    """Whether a library ends with its own digest; one that was cut would end the process."""
    if not file.exists():
        return False
    with disk.naming(file):
        code, digest = (found := file.read_bytes())[:-32], found[-32:]
    return hashlib.sha256(code).digest() == digest


def _reason(error: Exception) -> str:
    """What went wrong, in a line."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"{error.cmd[0]} has not ended after {error.timeout:.0f} s"
    if isinstance(error, subprocess.CalledProcessError):
        said = [line for line in error.stderr.splitlines() if line.strip()]
        told = [line for line in said if "error" in line] or said[-1:] or ["it said nothing"]
        return f"{error.cmd[0]} ended with {error.returncode}: {told[0]}"
    return str(error)


def pack_pointwise(w: Float[Array, "i o"]) -> Int8[Array, "vectors groups 16 4"]:
    """Codes of a 1x1 convolution's weights, as `pointwise` reads them."""
    w = _filled(w, (GROUP, LANES))
    return w.reshape(w.shape[0] // GROUP, GROUP, -1, LANES).transpose(2, 0, 3, 1)


def pack_depthwise(w: Float[Array, "k k c"]) -> Int8[Array, "vectors k groups 16 4"]:
    """Codes of a depthwise convolution's weights, as `depthwise` reads them."""
    w = _filled(w, (1, GROUP, LANES))
    return w.reshape(len(w), w.shape[1] // GROUP, GROUP, -1, LANES).transpose(3, 0, 1, 4, 2)


def _filled(w, multiples):
    """As bytes, filled up with zeros to multiples of these sizes."""
    ends = [(0, -size % multiple) for size, multiple in zip(w.shape, multiples, strict=True)]
    return jnp.pad(w.astype(jnp.int8), ends)


def pointwise(
    x: UInt8[Array, "n h w i"],
    w: Int8[Array, "vectors groups 16 4"],
    norm: Float[Array, "3 o"],
) -> UInt8[Array, "n h w o"]:
    """A 1x1 convolution; see `byte_conv.pointwise`."""
    return _call(FUNCTIONS[0], (*x.shape[:-1], norm.shape[-1]))(x, w, norm)


def depthwise(
    x: UInt8[Array, "n h w c"],
    w: Int8[Array, "vectors k groups 16 4"],
    norm: Float[Array, "3 c"],
    stride: int,
    dilation: int,
) -> UInt8[Array, "n h2 w2 c"]:
    """A depthwise convolution; see `byte_conv.depthwise`."""
    n, height, width, channels = x.shape
    shape = (n, -(-height // stride), -(-width // stride), channels)
    sizes = {"kernel": w.shape[1], "stride": stride, "dilation": dilation}
    sizes = {name: np.int64(size) for name, size in sizes.items()}
    return _call(FUNCTIONS[1], shape)(x, w, norm, **sizes)


def _call(name, shape):
    # Under vmap the nodes are the first axis, of length one where all have the same.
    return jax.ffi.ffi_call(name, jax.ShapeDtypeStruct(shape, jnp.uint8), vmap_method="expand_dims")
