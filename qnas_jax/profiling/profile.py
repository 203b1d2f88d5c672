"""Times networks and slices of networks on a runtime, and fills a latency table.

The time of a call of the runtime is measured separately and subtracted from every latency,
because a search adds up many slices, and a network is called once.
"""

import functools
import logging
import pathlib
import random
import tempfile
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, TypeVar

from qnas_jax.errors import InputError
from qnas_jax.export import runtimes
from qnas_jax.export.graph import Graph
from qnas_jax.export.runtimes import Runtime
from qnas_jax.hardware import board, measured
from qnas_jax.hardware.measured import ProbeKey, Row
from qnas_jax.profiling import synthetic, timing
from qnas_jax.profiling.timing import Bursts, Effort, Timing
from qnas_jax.run import log
from qnas_jax.run.listing import listed

logger = logging.getLogger(__name__)

SIDE_BY_SIDE = 24  # networks that take turns; an interruption loses their measurements
Name = TypeVar("Name", bound=Hashable)


def fill(
    table: pathlib.Path,
    wanted: Mapping[ProbeKey, Graph],
    runtime: Runtime,
    threads: int,
    effort: Effort,
) -> None:
    """Measures what a table lacks, and appends each line as soon as it is known.

    Args:
      table: The CSV file; created if it is missing.
      wanted: The slices that the table should have.
      runtime: The runtime.
      threads: Its number of threads.
      effort: When to stop measuring.

    Raises:
      InputError: The table was measured under other conditions.
    """
    rows = measured.read(table) if table.exists() else []
    conditions = (runtime.name, runtime.version, runtimes.device(), threads)
    measured.check_conditions(table, rows, conditions)
    done = {row.probe for row in rows}
    left = {probe: piece for probe, piece in wanted.items() if probe not in done}
    finished, wide = len(wanted) - len(left), 0
    progress = log.Progress("profile", len(wanted), finished)
    for probe, found in latencies(left, runtime, threads, effort):
        measured.append(table, Row(probe, *found[:-1], None, *conditions))
        finished += 1
        wide += found.interval_ms > effort.width * found.latency_ms
        progress.show(finished, f"{probe.place} {probe.path} {found.latency_ms:.4g} ms")
    if wide:
        share = f"{100 * effort.width:g} %"
        logger.info("%d of %d have intervals wider than %s", wide, len(left), share)


def latencies(
    networks: Mapping[Name, Graph], runtime: Runtime, threads: int, effort: Effort
) -> Iterator[tuple[Name, Timing]]:
    """The latency of each network without the call; yields each as soon as it is known.

    Args:
      networks: Graphs by their names.
      runtime: The runtime.
      threads: Its number of threads.
      effort: When to stop measuring.
    """
    if not networks:
        return
    with tempfile.TemporaryDirectory() as folder, timing.pinned(threads):
        timed = functools.partial(_timed, runtime, threads, pathlib.Path(folder), effort)
        calls = {name: timing.latency(bursts) for name, bursts in timed(synthetic.calls())}
        call_s = board.call_latency(calls)
        logger.info("%s, threads: %d, a call: %.4f ms", runtime.name, threads, 1e3 * call_s)
        # Shuffled, so that a drift does not look like a property of a block.
        names = random.Random(0).sample(list(networks), len(networks))
        for begin in range(0, len(names), SIDE_BY_SIDE):
            some = {name: networks[name] for name in names[begin : begin + SIDE_BY_SIDE]}
            for name, bursts in timed(some):
                yield name, timing.summary(bursts, call_s)


def _timed(
    runtime: Runtime,
    threads: int,
    folder: pathlib.Path,
    effort: Effort,
    networks: Mapping[Name, Graph],
) -> Iterator[tuple[Name, Bursts]]:
    loads = {}
    for number, (name, network) in enumerate(networks.items()):
        path = folder / f"{number}{runtime.suffix}"
        runtime.write(network, path)
        loads[name] = functools.partial(runtime.load, path, threads)
    return timing.timed(loads, effort)


def compare(
    networks: Mapping[str, tuple[Graph, Graph]], runtime: Runtime, threads: int, effort: Effort
) -> dict[str, Any]:
    """Latency of networks in float and quantized: the content of `latency.json`.

    Args:
      networks: The float graph and the quantized one of each network, by its name.
      runtime: The runtime.
      threads: Its number of threads.
      effort: When to stop measuring.

    Returns:
      The conditions, and for each network the figures of both and how many times as fast the
      quantized one is.
    """
    graphs = {
        (name, kind): network
        for name, pair in networks.items()
        for kind, network in zip(("float", "quantized"), pair, strict=True)
    }
    found = dict(latencies(graphs, runtime, threads, effort))
    result: dict[str, Any] = {
        "runtime": runtime.name,
        "runtime_version": runtime.version,
        "device": runtimes.device(),
        "threads": threads,
        "networks": {},
    }
    for name in networks:
        float_, quantized = found[name, "float"], found[name, "quantized"]
        result["networks"][name] = {
            "float": float_._asdict(),
            "quantized": quantized._asdict(),
            "ratio": float_.latency_ms / quantized.latency_ms,
        }
    return result


def write_files(folder: pathlib.Path, wanted: Mapping[ProbeKey, Graph], runtime: Runtime) -> None:
    """Writes a file for each probe, and a list of the files for the script of a board.

    Args:
      folder: Created if it is missing.
      wanted: The slices to measure on the board.
      runtime: The runtime that the files are for.

    Raises:
      InputError: The folder has a board's logs of other files.
    """
    if listed(folder, "*.log"):
        raise InputError(f"{folder}: holds logs of other files; take another folder, or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    calls = {board.of_call(name): network for name, network in synthetic.calls().items()}
    files = {}
    for number, (probe, network) in enumerate({**calls, **wanted}.items()):
        name = f"{number:04d}_{'_'.join(probe[:2]).replace('/', '_').strip('_')}"
        files[f"{name}{runtime.suffix}"] = probe
        runtime.write(network, folder / f"{name}{runtime.suffix}")
    board.write_manifest(folder, files)
