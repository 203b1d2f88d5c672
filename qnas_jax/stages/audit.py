"""Compares the figures of random subnets by the tables with those of the exported networks."""

import functools
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.export import describe
from qnas_jax.export.graph import Graph
from qnas_jax.export.runtimes import Runtime
from qnas_jax.hardware import matrix, size
from qnas_jax.hardware.deployment import Deployment
from qnas_jax.profiling import audit as audits
from qnas_jax.profiling import probes, profile, synthetic
from qnas_jax.profiling.audit import Audited, Conditions
from qnas_jax.profiling.timing import Effort
from qnas_jax.run import log
from qnas_jax.stages.experiment import Problem


def draw(
    searched: space.Space, bits: Sequence[space.Bits], per_layer: bool, count: int, seed: int
) -> list[space.Subnet]:
    """Returns different random subnets of a space; all subnets if there are fewer.

    Args:
      searched: Blocks and ops.
      bits: The bitwidths of weights and activations to choose from.
      per_layer: Whether each layer has its own bitwidths; else each block has.
      count: Number of subnets.
      seed: Seed of the choice.
    """
    rng = np.random.default_rng(seed)
    paths = np.prod([float(searched.rows(block)) for block in range(len(searched.blocks))])
    picked: dict[space.Subnet, None] = {}
    while len(picked) < min(count, paths):
        picked[probes.random_subnet(rng, searched, bits, per_layer)] = None
    return list(picked)


def audit(
    problem: Problem,
    deployed: Deployment,
    subnets: Sequence[space.Subnet],
    conditions: Conditions,
    runtime: Runtime,
    effort: Effort,
    file: pathlib.Path,
) -> list[Audited]:
    """Adds up the latencies of subnets from a table, and exports and times the subnets.

    Args:
      problem: Has the networks of the subnets.
      deployed: Its target has the table.
      subnets: The subnets.
      conditions: How the subnets are timed.
      runtime: The runtime that times them.
      effort: When to stop measuring.
      file: Each subnet is written to it at once; subnets that it has are not measured again.

    Raises:
      InputError: The table lacks a layer, or the file was made under other conditions.
    """
    drawn = {space.format_subnet(subnet): subnet for subnet in subnets}
    table_ms = _table_ms(deployed, drawn, conditions.table)
    done = {one.subnet: one for one in audits.read(file, conditions)}
    _check_kept(file, done, table_ms)
    left = {
        text: probes.network(problem.student, subnet, deployed.image_shape)
        for text, subnet in drawn.items()
        if text not in done
    }
    if not deployed.target.per_channel:
        left = {text: synthetic.with_layer_scales(network) for text, network in left.items()}
    kept = len(drawn) - len(left)
    progress = log.Progress("audit", len(drawn), kept)
    found = profile.latencies(left, runtime, conditions.threads, effort)
    for number, (text, timing) in enumerate(found, kept + 1):
        sizes = _sizes(problem.space, deployed, drawn[text], left[text], runtime)
        done[text] = Audited(text, table_ms[text], timing.latency_ms, *sizes)
        audits.write(file, done.values(), conditions)
        progress.show(number)
    return [done[text] for text in drawn]


def _table_ms(
    deployed: Deployment, subnets: Mapping[str, space.Subnet], table: str
) -> dict[str, float]:
    """The latencies of whole networks by the table, by their text forms.

    Raises:
      InputError: The table lacks a layer of one.
    """
    choices = {choice for subnet in subnets.values() for block in subnet for choice in block}
    ops = tuple(sorted({choice.op for choice in choices}))
    bits = tuple(sorted({(choice.w_bits, choice.a_bits) for choice in choices}))
    fixed_ms, costs = sum(deployed.fixed()["latency_ms"].values()), deployed.matrix(ops, bits)
    found = {}
    for text, subnet in subnets.items():
        blocks = matrix.subnet_costs(costs, ops, bits, subnet)
        found[text] = fixed_ms + blocks["latency_ms"]
        if not math.isfinite(found[text]):
            raise InputError(f"{table}: lacks layers of {text}; qnas profile_latency adds them")
    return found


def _check_kept(
    file: pathlib.Path, kept: Mapping[str, Audited], table_ms: Mapping[str, float]
) -> None:
    """Refuses an audit of a table that had other latencies."""
    for text in kept.keys() & table_ms.keys():
        then, now = kept[text].table_ms, table_ms[text]
        if then != now:
            raise InputError(
                f"{file}: is of another table, which gave {then} ms for {text}, now {now} ms; "
                "take another --workdir, or delete it"
            )


def _sizes(
    searched: space.Space,
    deployed: Deployment,
    subnet: space.Subnet,
    network: Graph,
    runtime: Runtime,
) -> tuple[int, int, int, int]:
    """All sizes of `Audited`, in bytes."""

    def table_bytes(column: size.Column) -> int:
        """The bytes of the whole network by a column of the size table."""
        parts = deployed.parts.values()
        w_bits, _ = deployed.target.fixed_bits
        fixed = sum(size.network_bytes(convs, w_bits, column) for convs in parts)
        return fixed + size.subnet_bytes(searched.blocks, subnet, column)

    scales = {"per_channel": deployed.target.per_channel}
    stored = functools.partial(size.file_bytes, file_format=runtime.file_format, **scales)
    channels = [conv.weights.shape[-1] for conv in network.convs if scales["per_channel"]]
    return (
        table_bytes(functools.partial(size.conv_bytes, **scales)),
        describe.describe(network, {})["size_bytes"],
        table_bytes(stored) + size.shared_bytes(channels, runtime.file_format),
        len(runtime.file(network)),
    )
