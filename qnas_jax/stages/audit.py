"""Random subnets, as the tables have them and as they are once exported."""

import functools
import math
import pathlib
from collections.abc import Mapping

import numpy as np

from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.export import describe, runtimes
from qnas_jax.export.graph import Graph
from qnas_jax.export.runtimes import Runtime
from qnas_jax.hardware import matrix, size
from qnas_jax.profiling import audit as audits
from qnas_jax.profiling import probes, profile
from qnas_jax.profiling.audit import Audited, Conditions
from qnas_jax.profiling.timing import Effort
from qnas_jax.run import log
from qnas_jax.stages.experiment import Setting


def draw(setting: Setting, count: int) -> list[space.Subnet]:
    """Different subnets of the space, or as many as there are if that is less."""
    rng = np.random.default_rng(setting.config.seed)
    searched, per_layer = setting.searched, setting.config.space.bits_per == "layer"
    paths = np.prod([float(searched.rows(block)) for block in range(len(searched.blocks))])
    picked: dict[space.Subnet, None] = {}
    while len(picked) < min(count, paths):
        picked[probes.random_subnet(rng, searched, setting.bits, per_layer)] = None
    return list(picked)


def audit(
    setting: Setting,
    count: int,
    runtime: Runtime,
    threads: int,
    effort: Effort,
    file: pathlib.Path,
) -> list[Audited]:
    """Adds up random subnets from the tables, and exports and times them.

    Args:
      setting: Its target's latencies are those to be audited.
      count: Number of subnets.
      runtime: What times them.
      threads: How many it has.
      effort: When enough was measured.
      file: Gets each subnet as soon as it is known; what it holds already is not measured again.

    Raises:
      InputError: The table has not all layers, or the file was made from something else.
    """
    drawn = {space.format_subnet(subnet): subnet for subnet in draw(setting, count)}
    device = (runtime.name, runtime.version, runtimes.device(), threads)
    shared = (*setting.picture()[:2], setting.config.seed, setting.config.hardware.table)
    conditions = Conditions(*device, *shared)
    table_ms = _table_ms(setting, drawn)
    done = {one.subnet: one for one in audits.read(file, conditions)}
    _check_kept(file, done, table_ms)
    left = {
        text: probes.network(setting.student, subnet, setting.picture())
        for text, subnet in drawn.items()
        if text not in done
    }
    kept = len(drawn) - len(left)
    progress = log.Progress("audit", len(drawn), kept)
    found = profile.latencies(left, runtime, threads, effort)
    for number, (text, timing) in enumerate(found, kept + 1):
        sizes = _sizes(setting, drawn[text], left[text], runtime)
        done[text] = Audited(text, table_ms[text], timing.latency_ms, *sizes)
        audits.write(file, done.values(), conditions)
        progress.show(number)
    return [done[text] for text in drawn]


def _table_ms(setting: Setting, subnets: Mapping[str, space.Subnet]) -> dict[str, float]:
    """The latencies of whole networks by the table, by their text forms.

    Raises:
      InputError: The table lacks layers of one.
    """
    deployed, ops, bits = setting.deployment(), setting.searched.ops, setting.bits
    fixed_ms, costs = sum(deployed.fixed()["latency_ms"].values()), deployed.matrix(ops, bits)
    found = {}
    for text, subnet in subnets.items():
        blocks = matrix.subnet_costs(costs, ops, bits, subnet)
        found[text] = fixed_ms + blocks["latency_ms"]
        if not math.isfinite(found[text]):
            raise InputError(
                f"{setting.config.hardware.table}: lacks layers of {text}; "
                "qnas profile_latency adds them"
            )
    return found


def _check_kept(
    file: pathlib.Path, kept: Mapping[str, Audited], table_ms: Mapping[str, float]
) -> None:
    """Refuses what was audited when the table told something else."""
    for text in kept.keys() & table_ms.keys():
        then, now = kept[text].table_ms, table_ms[text]
        if then != now:
            raise InputError(
                f"{file}: is of another table, which told {then} ms of {text}, now {now} ms; "
                "take another --workdir, or delete it"
            )


def _sizes(
    setting: Setting, subnet: space.Subnet, network: Graph, runtime: Runtime
) -> tuple[int, int, int, int]:
    """All that `Audited` has in bytes."""
    stored = functools.partial(size.file_bytes, file_format=runtime.file_format)
    channels = (conv.weights.shape[-1] for conv in network.convs)
    return (
        _table_bytes(setting, subnet, size.conv_bytes),
        describe.describe(network, {})["size_bytes"],
        _table_bytes(setting, subnet, stored) + size.shared_bytes(channels, runtime.file_format),
        len(runtime.file(network)),
    )


def _table_bytes(setting: Setting, subnet: space.Subnet, column: size.Column) -> int:
    """What a column of the size table says of a whole network."""
    fixed = sum(setting.fixed_bytes(column).values())
    return fixed + size.subnet_bytes(setting.searched.blocks, subnet, column)
