"""The peer of the table's engine on files: ONNX Runtime runs each subnet's INT8 block.

The files are the project's own, with random numbers, which take as long as trained ones. Only the
block is run: its output is not compared with a target, as the engine's is.
"""

import tempfile
import time
from collections.abc import Sequence

from qnas_jax import space
from qnas_jax.export import runtimes
from qnas_jax.nn.mbconv import BlockPath
from qnas_jax.profiling import synthetic
from qnas_jax.run.paths import named

REPEATS = 20  # runs of a file; the fastest counts


def seconds(
    block: space.Block, paths: Sequence[space.Path], shape: tuple[int, int], threads: int
) -> tuple[float, float]:
    """Seconds of a run on one image, and of making a session, both the mean over paths.

    Args:
      block: The block.
      paths: Those that are measured.
      shape: Height and width of the block's input.
      threads: How many ONNX Runtime may use.
    """
    runtime, runs, loads = runtimes.onnxruntime(), 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        file = named("a temporary folder", folder) / f"block{runtime.suffix}"
        for path in paths:
            graph = synthetic.piece(BlockPath(block, path), (*shape, block.in_channels))
            file.write_bytes(runtime.file(graph))
            begin = time.perf_counter()
            run = runtime.load(file, threads)  # runs it once
            loaded = time.perf_counter() - begin
            fastest = min(_once(run) for _ in range(REPEATS))
            runs, loads = runs + fastest, loads + loaded - fastest
    return runs / len(paths), loads / len(paths)


def _once(run) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
