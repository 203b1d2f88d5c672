"""The runtimes that files are written for: ONNX Runtime, and LiteRT where it is installed."""

import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from qnas_jax.errors import InputError
from qnas_jax.export.graph import Graph
from qnas_jax.export.parity import Codes
from qnas_jax.hardware import size
from qnas_jax.hardware.size import FileFormat
from qnas_jax.nn.trace import IMAGE
from qnas_jax.run import disk
from qnas_jax.tasks.task import Classify

Run = Callable[[], Any]  # runs a loaded file once

EXACT_ONNX = (
    "ONNX Runtime on the CPU, its optimizations left on (EXTENDED or ALL); on x86 CPUs that have "
    "AVX2 and no VNNI, sessions set session.x64quantprecision=1; layers with int4 weights run in "
    "float"
)
EXACT_TFLITE = "LiteRT on the CPU by XNNPACK, its default"


class Runtime(NamedTuple):
    """A file format and what runs it on this machine's CPU.

    Attributes:
      name: As on the command line and in tables.
      version: Of the installed one, with the `option` that its sessions set.
      suffix: Of its files.
      file_format: What they carry beyond the logical bytes.
      file: A graph as the bytes of a file.
      load: Loads a file for a number of threads; the function that it returns runs the file
        and copies neither input nor output.
      class_maps: Opens a file; gives a function images -> class maps.
      tensors: A network's tensors of codes for some images.
      exact_with: What gives the simulated codes of its files, for readers.
      option: What sessions set on this CPU because sums would saturate without it.
      saturates: Whether they saturate nevertheless.
    """

    name: str
    version: str
    suffix: str
    file_format: FileFormat
    file: Callable[[Graph], bytes]
    load: Callable[[pathlib.Path, int], Run]
    class_maps: Callable[[pathlib.Path], Classify]
    tensors: Callable[[Graph, np.ndarray], Codes]
    exact_with: str
    option: str = ""
    saturates: bool = False

    def write(self, network: Graph, path: pathlib.Path) -> None:
        """Writes a graph to a file."""
        with disk.naming(path):
            path.write_bytes(self.file(network))


def has_litert() -> bool:
    """Whether LiteRT is installed; see docs/litert.md."""
    return importlib.util.find_spec("ai_edge_litert") is not None


def installed() -> tuple[Runtime, ...]:
    """All installed runtimes, ONNX Runtime first."""
    return (onnxruntime(), *([litert()] if has_litert() else []))


def named(name: str) -> Runtime:
    """The runtime of that name.

    Raises:
      InputError: There is no such runtime, or it is not installed.
    """
    if name not in RUNTIMES:
        raise InputError(f"--runtime={name}: must be {' or '.join(RUNTIMES)}")
    try:
        return RUNTIMES[name]()
    except ImportError as error:
        raise InputError(
            f"--runtime={name}: is not installed ({error}); pip install -e '.[litert]'"
        ) from None


def check_threads(threads: int) -> None:
    """Refuses more threads than there are CPUs: they would be timed while they wait.

    Raises:
      InputError: There are fewer CPUs.
    """
    if threads > (os.cpu_count() or 1):
        raise InputError(f"--threads={threads}: there are {os.cpu_count()} CPUs")


def onnxruntime() -> Runtime:
    """ONNX Runtime."""
    import onnxruntime as ort

    from qnas_jax.export.onnx import run as onnx_run
    from qnas_jax.export.onnx import write as writer

    def load(path: pathlib.Path, threads: int) -> Run:
        session = onnx_run.session(path, threads)
        (read,), (given,) = session.get_inputs(), session.get_outputs()
        dtype = np.uint8 if read.type == "tensor(uint8)" else np.float32
        values = _values((1, *read.shape[1:]), dtype)
        binding = session.io_binding()
        binding.bind_ortvalue_input(read.name, ort.OrtValue.ortvalue_from_numpy(values))
        out = np.asarray(session.run(None, {read.name: values})[0])
        binding.bind_ortvalue_output(given.name, ort.OrtValue.ortvalue_from_numpy(out))
        return lambda: session.run_with_iobinding(binding)

    def tensors(network: Graph, images: np.ndarray) -> Codes:
        inner = [node.out.name for node in network.nodes if node.out.grid]
        ready = onnx_run.session(onnx_run.with_outputs(writer.model(network), inner))
        return onnx_run.tensors(ready, images)

    # Files are timed with the option too, because their codes need it.
    option = "=".join(onnx_run.EXACT) if onnx_run.saturates() else ""
    return Runtime(
        "onnxruntime",
        f"{ort.__version__} with {option}" if option else ort.__version__,
        ".onnx",
        size.ONNX_QDQ,
        lambda network: writer.model(network).SerializeToString(),
        load,
        lambda path: functools.partial(onnx_run.run, onnx_run.session(path)),
        tensors,
        EXACT_ONNX,
        option,
        onnx_run.saturates(exact=bool(option)),
    )


def litert() -> Runtime:
    """LiteRT, by XNNPACK's kernels."""
    from qnas_jax.export.litert import run as litert_run
    from qnas_jax.export.litert import write as writer

    def load(path: pathlib.Path, threads: int) -> Run:
        ready = litert_run.session(path, threads)
        (read,) = ready.get_input_details()
        ready.set_tensor(read["index"], _values(tuple(read["shape"].tolist()), read["dtype"]))
        return ready.invoke

    def tensors(network: Graph, images: np.ndarray) -> Codes:
        ready = litert_run.session(writer.model(network), inner=True)
        return litert_run.tensors(ready, network, images)

    return Runtime(
        "litert",
        importlib.metadata.version("ai-edge-litert"),
        ".tflite",
        size.TFLITE,
        lambda network: writer.model(network, reads_bytes=network.x.name == IMAGE),
        load,
        lambda path: functools.partial(litert_run.run, litert_run.session(path)),
        tensors,
        EXACT_TFLITE,
    )


RUNTIMES = {"onnxruntime": onnxruntime, "litert": litert}


def _values(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Random values of an input."""
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
