"""Random subnets, as the tables have them and as they are once exported."""

import functools

import numpy as np

from qnas_jax import runlog, space
from qnas_jax.export import describe, profile, subjects
from qnas_jax.export.audit import Audited
from qnas_jax.export.runtimes import Runtime
from qnas_jax.export.timing import Effort
from qnas_jax.hardware import size
from qnas_jax.hardware import target as targets
from qnas_jax.setting import Setting


def draw(setting: Setting, count: int) -> list[space.Subnet]:
    """Different subnets of the space, or as many as there are if that is less."""
    rng = np.random.default_rng(setting.config.seed)
    searched, per_layer = setting.searched, setting.config.space.bits_per == "layer"
    paths = np.prod([float(searched.rows(block)) for block in range(len(searched.blocks))])
    picked: dict[space.Subnet, None] = {}
    while len(picked) < min(count, paths):
        picked[subjects.random_subnet(rng, searched, setting.bits, per_layer)] = None
    return list(picked)


def audit(
    setting: Setting, count: int, runtime: Runtime, threads: int, effort: Effort
) -> list[Audited]:
    """Adds up random subnets from the tables, and exports and times them.

    Args:
      setting: Its target's latencies are those to be audited.
      count: Number of subnets.
      runtime: What times them.
      threads: How many it has.
      effort: When enough was measured.
    """
    networks = {
        subnet: subjects.network(setting.student, subnet, setting.picture())
        for subnet in draw(setting, count)
    }
    progress = runlog.Progress("audit", len(networks))
    latencies = {}
    for subnet, timing in profile.latencies(networks, runtime, threads, effort):
        latencies[subnet] = timing.latency_ms
        progress.show(len(latencies))
    where, cost = setting.places(), setting.target.costs["latency_ms"]
    fixed_ms = setting.fixed_costs()["latency_ms"]
    stored = functools.partial(size.file_bytes, file_format=runtime.file_format)
    audited = []
    for subnet, network in networks.items():
        file_bytes = profile.file_bytes(network, runtime)
        audited.append(
            Audited(
                space.format_subnet(subnet),
                table_ms=fixed_ms + targets.subnet_cost(cost, where, subnet),
                latency_ms=latencies[subnet],
                table_bytes=_table_bytes(setting, subnet, size.conv_bytes),
                size_bytes=describe.describe(network, {})["size_bytes"],
                stored_bytes=_table_bytes(setting, subnet, stored),
                file_bytes=file_bytes,
            )
        )
    return audited


def _table_bytes(setting: Setting, subnet: space.Subnet, column: size.Column) -> int:
    """What a column of the size table says of a whole network."""
    fixed = sum(setting.fixed_bytes(column).values())
    return fixed + size.subnet_bytes(setting.searched.blocks, subnet, column)
