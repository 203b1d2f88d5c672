"""INT8 convolutions in C++, for CPUs with AVX-512 VNNI. Only `int8.py` imports this module.

On a CPU, XLA's products of int8 are slower than its products of float32; these are several
times faster. `native.cc` is compiled on first use by the machine's own C++ compiler, which takes
a few seconds, and the library is kept from run to run.
"""

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, Int32, UInt8

from qnas_jax.run import disk
from qnas_jax.run.platform import cache_folder

LANES = 16  # channels of a vector of sums
GROUP = 4  # products that one instruction adds to a sum

SOURCE = pathlib.Path(__file__).with_suffix(".cc")
HEADERS = tuple(
    SOURCE.with_name(f"{name}.h")
    for name in (
        *("native", "pointwise", "correlate", "depthwise"),
        *("grid", "mbconv", "settle", "statistics"),
    )
)
MACHINES = ("x86_64", "AMD64")  # which may have AVX-512 VNNI
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-shared"),
    "-fno-tree-pre",  # with it GCC 12 keeps sums in memory: 1.7 times slower
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni"),
)
FUNCTIONS = (
    "qnas_jax_pointwise",
    "qnas_jax_depthwise",
    "qnas_jax_pointwise_statistics",
    "qnas_jax_depthwise_statistics",
    "qnas_jax_mbconv",
    "qnas_jax_mbconv_noise",
    "qnas_jax_settle",
    "qnas_jax_add",
)
COMPILE_S = 300


@functools.cache
def missing(may_compile: bool) -> str:
    """Loads the library, and compiles it first where that is needed and allowed.

    Returns:
      Why this machine cannot use it; empty if it can.
    """
    if platform.machine() not in MACHINES:
        return f"{platform.machine()} CPUs have no AVX-512 VNNI"
    try:
        library = _loaded(may_compile)
        if not _runs_here(library):
            return "this CPU has no AVX-512 VNNI"
        for name in FUNCTIONS:
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(library[name]), platform="cpu")
    except (OSError, AttributeError, RuntimeError, subprocess.SubprocessError) as error:
        return _reason(error)
    return ""


def _loaded(may_compile: bool) -> ctypes.CDLL:
    """The library, from the cache folder; if there is none, compiled for this process alone."""
    if folder := cache_folder():
        return ctypes.CDLL(str(_compiled(folder, may_compile)))
    with tempfile.TemporaryDirectory() as temporary:  # what is loaded stays without its file
        return ctypes.CDLL(str(_compiled(pathlib.Path(temporary), may_compile)))


def _runs_here(library: ctypes.CDLL) -> bool:
    """Whether this CPU has the instructions that the library is made of."""
    library.qnas_jax_runs_here.restype = ctypes.c_bool
    return library.qnas_jax_runs_here()


def _compiled(folder: pathlib.Path, may_compile: bool) -> pathlib.Path:
    """The library in a folder, compiled once for each version of what goes into it."""
    versions = (FLAGS, importlib.metadata.version("jaxlib"))
    source = b"".join(file.read_bytes() for file in (SOURCE, *HEADERS))
    key = hashlib.sha256(source + repr(versions).encode()).hexdigest()[:16]
    file = folder / f"native-{key}.so"
    if not _is_whole(file):
        if not may_compile:
            raise FileNotFoundError(f"kernels.compile=never, and nothing is compiled in {folder}")
        _compile(_compiler(), file)
    return file


def _compiler() -> list[str]:
    """The compiler's command: that of CXX, else the machine's own."""
    given, own = shlex.split(os.environ.get("CXX", "")), shutil.which("c++")
    if not given and own is None:
        raise FileNotFoundError("there is no C++ compiler (c++)")
    return given or [str(own)]


def _compile(compiler: list[str], file: pathlib.Path) -> None:
    # Several processes may compile at once: each its own file, whole when it gets its name.
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        made = pathlib.Path(folder) / file.name
        command = [*compiler, *FLAGS, f"-I{jax.ffi.include_dir()}", str(SOURCE), "-o", str(made)]
        subprocess.run(
            command, check=True, capture_output=True, errors="replace", timeout=COMPILE_S
        )
        code = made.read_bytes()
        made.write_bytes(code + hashlib.sha256(code).digest())
        made.replace(file)


def _is_whole(file: pathlib.Path) -> bool:
    """Whether a library ends with its own digest; loading a truncated one ends the process."""
    if not file.exists():
        return False
    with disk.naming(file):
        code, digest = (found := file.read_bytes())[:-32], found[-32:]
    return hashlib.sha256(code).digest() == digest


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"{error.cmd[0]} has not ended after {error.timeout:.0f} s"
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in error.stderr.splitlines() if line.strip()]
        lines = [line for line in lines if "error" in line] or lines[-1:] or ["it said nothing"]
        return f"{error.cmd[0]} ended with {error.returncode}: {lines[0]}"
    return str(error)


def pack_pointwise(w: Float[np.ndarray, "i o"]) -> Int8[np.ndarray, "vectors groups 16 4"]:
    """Weight codes of a 1x1 convolution, in the order in which `pointwise` reads them."""
    w = _padded(w, (GROUP, LANES))
    return w.reshape(w.shape[0] // GROUP, GROUP, -1, LANES).transpose(2, 0, 3, 1)


def pack_depthwise(w: Float[np.ndarray, "k k c"]) -> Int8[np.ndarray, "vectors k groups 16 4"]:
    """Weight codes of a depthwise convolution, in the order in which `depthwise` reads them."""
    w = _padded(w, (1, GROUP, LANES))
    return w.reshape(len(w), w.shape[1] // GROUP, GROUP, -1, LANES).transpose(3, 0, 1, 4, 2)


def _padded(w, multiples):
    """As int8, padded with zeros to multiples of these sizes."""
    ends = [(0, -size % multiple) for size, multiple in zip(w.shape, multiples, strict=True)]
    return np.pad(w.astype(np.int8), ends)


def pointwise(
    x: UInt8[Array, "n h w i"],
    w: Int8[Array, "vectors groups 16 4"],
    norm: Float[Array, "3 o"],
) -> UInt8[Array, "n h w o"]:
    """A 1x1 convolution; see `int8.pointwise`."""
    out = jax.ShapeDtypeStruct((*x.shape[:-1], norm.shape[-1]), jnp.uint8)
    return _call(FUNCTIONS[0], out)(x, w, norm)


def depthwise(
    x: UInt8[Array, "n h w c"],
    w: Int8[Array, "vectors k groups 16 4"],
    norm: Float[Array, "3 c"],
    stride: int,
    dilation: int,
) -> UInt8[Array, "n h2 w2 c"]:
    """A depthwise convolution; see `int8.depthwise`."""
    n, height, width, channels = x.shape
    out = (n, -(-height // stride), -(-width // stride), channels)
    sizes = _sizes(w, stride, dilation)
    return _call(FUNCTIONS[1], jax.ShapeDtypeStruct(out, jnp.uint8))(x, w, norm, **sizes)


def pointwise_statistics(
    x: UInt8[Array, "n h w i"],
    w: Int8[Array, "vectors groups 16 4"],
    center: Int32[Array, "1 o"],
) -> Float[Array, "4 o"]:
    """Statistics of a 1x1 convolution's sums; see `int8.pointwise_statistics`."""
    out = jax.ShapeDtypeStruct((4, center.shape[-1]), jnp.float32)
    return _call(FUNCTIONS[2], out)(x, w, center)


def depthwise_statistics(
    x: UInt8[Array, "n h w c"],
    w: Int8[Array, "vectors k groups 16 4"],
    stride: int,
    dilation: int,
) -> Float[Array, "4 c"]:
    """Statistics of a depthwise convolution's sums; see `int8.depthwise_statistics`."""
    out = jax.ShapeDtypeStruct((4, x.shape[-1]), jnp.float32)
    return _call(FUNCTIONS[3], out)(x, w, **_sizes(w, stride, dilation))


def settle(
    statistics: Float[Array, "4 c"],
    rate: Float[Array, "c"],
    weights: Sequence[Float[Array, "c"]],
    before: Float[Array, "numbers"],
    a_bits: Int32[Array, ""],
    bounds: tuple[float, float],
) -> tuple[Float[Array, "6 c"], Float[Array, "6"], Float[Array, "3 c"]]:
    """What follows a convolution; see `int8.settle`."""
    channels = rate.shape[-1]
    shapes = (6, channels), (6,), (3, channels)
    call = _call(FUNCTIONS[6], [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes])
    low, high = map(np.float32, bounds)
    given = statistics, rate, *weights, before, a_bits[None]
    step, grid, norms = call(*given, low=low, high=high)
    return step, grid, norms


def add(
    x: UInt8[Array, "n h w c"],
    y: UInt8[Array, "n h w c"],
    of_x: Float[Array, "numbers"],
    of_y: Float[Array, "others"],
    a_bits: Int32[Array, ""],
) -> tuple[UInt8[Array, "n h w c"], Float[Array, "6"]]:
    """The sum of two tensors; see `int8.add`."""
    shapes = jax.ShapeDtypeStruct(x.shape, jnp.uint8), jax.ShapeDtypeStruct((6,), jnp.float32)
    codes, grid = _call(FUNCTIONS[7], shapes)(x, y, of_x, of_y, a_bits[None])
    return codes, grid


def mbconv(
    x: UInt8[Array, "n h w i"],
    weights: Sequence[Int8[Array, "..."]],
    norms: Float[Array, "3 all"],
    grids: Float[Array, "ops grids 4"],
    place: Mapping[str, int],
) -> UInt8[Array, "n h2 w2 o"]:
    """An inverted residual; see `int8.mbconv`."""
    n, *pixels, _ = x.shape
    out = (n, *(-(-size // place["stride"]) for size in pixels), place["channels"])
    call = _call(FUNCTIONS[4], jax.ShapeDtypeStruct(out, jnp.uint8))
    return call(x, *weights, norms, grids, **_integers(place))


def mbconv_noise(
    x: UInt8[Array, "n h w i"],
    weights: Sequence[Int8[Array, "..."]],
    norms: Float[Array, "3 all"],
    grids: Float[Array, "ops grids 4"],
    target: Float[Array, "n h2 w2 o"],
    place: Mapping[str, int],
) -> Float[Array, "o"]:
    """Its noise; see `int8.mbconv_noise`."""
    out = jax.ShapeDtypeStruct(target.shape[-1:], jnp.float32)
    return _call(FUNCTIONS[5], out)(x, *weights, norms, grids, target, **_integers(place))


def _sizes(w, stride, dilation):
    return _integers({"kernel": w.shape[1], "stride": stride, "dilation": dilation})


def _integers(sizes):
    return {name: np.int64(size) for name, size in sizes.items()}


def _call(name, out):
    # Under vmap the nodes are the first axis, of length one where all have the same.
    return jax.ffi.ffi_call(name, out, vmap_method="expand_dims")
