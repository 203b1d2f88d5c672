"""Runtimes of this machine's CPU: each writes a graph to a file and runs it."""

import importlib.metadata
import pathlib
import platform
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from qnas_jax.errors import InputError
from qnas_jax.export.fold import IMAGE
from qnas_jax.export.graph import Graph
from qnas_jax.export.timing import Run


class Runtime(NamedTuple):
    """What files are written for, and run by.

    Attributes:
      name: As on the command line and in tables.
      version: Of the installed one.
      suffix: Of its files.
      write: Writes a graph to a file.
      load: Makes a file ready to run on so many threads; a run has its input and output
        at hand and copies neither.
    """

    name: str
    version: str
    suffix: str
    write: Callable[[Graph, pathlib.Path], None]
    load: Callable[[pathlib.Path, int], Run]


def named(name: str) -> Runtime:
    """The runtime of that name.

    Raises:
      InputError: There is none, or it is not installed.
    """
    if name not in RUNTIMES:
        raise InputError(f"--runtime={name}: must be {' or '.join(RUNTIMES)}")
    try:
        return RUNTIMES[name]()
    except ImportError as error:
        raise InputError(
            f"--runtime={name}: is not installed ({error}); pip install -e '.[litert]'"
        ) from None


def onnxruntime() -> Runtime:
    """ONNX Runtime."""
    import onnx
    import onnxruntime as ort

    from qnas_jax.export import onnx as writer
    from qnas_jax.export import run

    def write(network: Graph, path: pathlib.Path) -> None:
        onnx.save(writer.model(network), path)

    def load(path: pathlib.Path, threads: int) -> Run:
        session = run.session(path, threads)
        (read,), (given,) = session.get_inputs(), session.get_outputs()
        dtype = np.uint8 if read.type == "tensor(uint8)" else np.float32
        values = _values((1, *read.shape[1:]), dtype)
        binding = session.io_binding()
        binding.bind_ortvalue_input(read.name, ort.OrtValue.ortvalue_from_numpy(values))
        out = np.asarray(session.run(None, {read.name: values})[0])
        binding.bind_ortvalue_output(given.name, ort.OrtValue.ortvalue_from_numpy(out))
        return lambda: session.run_with_iobinding(binding)

    return Runtime("onnxruntime", ort.__version__, ".onnx", write, load)


def litert() -> Runtime:
    """LiteRT, by XNNPACK's kernels."""
    from qnas_jax.export import litert as writer
    from qnas_jax.export import litert_run

    def write(network: Graph, path: pathlib.Path) -> None:
        path.write_bytes(writer.model(network, reads_bytes=network.x.name == IMAGE))

    def load(path: pathlib.Path, threads: int) -> Run:
        ready = litert_run.session(path, threads)
        (read,) = ready.get_input_details()
        ready.set_tensor(read["index"], _values(tuple(read["shape"].tolist()), read["dtype"]))
        return ready.invoke

    version = importlib.metadata.version("ai-edge-litert")
    return Runtime("litert", version, ".tflite", write, load)


RUNTIMES = {"onnxruntime": onnxruntime, "litert": litert}


def _values(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Something to read."""
    rng = np.random.default_rng(0)
    if np.issubdtype(dtype, np.integer):
        ends = np.iinfo(dtype)
        return rng.integers(ends.min, ends.max + 1, shape, dtype)
    return rng.standard_normal(shape, np.float32)


def device() -> str:
    """The name of this machine's CPU."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
