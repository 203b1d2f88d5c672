"""Exports the smallest and the largest subnet before a search begins."""

import logging
import pathlib
import tempfile
from collections.abc import Sequence

from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.export.runtimes import Runtime
from qnas_jax.hardware import size
from qnas_jax.profiling import probes
from qnas_jax.run import disk
from qnas_jax.stages.experiment import Problem

logger = logging.getLogger(__name__)


def dry_run(
    problem: Problem,
    bits: Sequence[space.Bits],
    image_shape: tuple[int, int, int],
    runtime: Runtime,
) -> None:
    """Exports the smallest and the largest subnet with random weights, and runs each once.

    Args:
      problem: Has the subnets.
      bits: The bitwidths of weights and activations to choose from.
      image_shape: Height, width and channels of deployed images.
      runtime: The runtime.

    Raises:
      InputError: One of them cannot be written, or does not run.
    """
    subnets = extremes(problem.space, bits)
    for name, subnet in zip(("smallest", "largest"), subnets, strict=True):
        network = probes.network(problem.student, subnet, image_shape)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / f"{name}{runtime.suffix}"
            try:
                runtime.write(network, path)
                runtime.load(path, 1)()
            except Exception as error:  # runtimes' own errors have no common class
                if found := disk.fault(error):
                    raise found from None
                raise InputError(
                    f"{runtime.name} {runtime.version} does not run the {name} subnet "
                    f"{space.format_subnet(subnet)} ({_first_line(error)}); "
                    "remove from the space what it does not run"
                ) from error
            kilobytes = path.stat().st_size / 1e3
        logger.info("%s runs the %s subnet, %.1f kB", runtime.name, name, kilobytes)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def extremes(
    searched: space.Space, bits: Sequence[space.Bits]
) -> tuple[space.Subnet, space.Subnet]:
    """Returns the smallest and the largest subnet by size."""
    choices = [space.Choice(op, *pair) for pair in bits for op in searched.ops]

    def picked(best):
        return tuple(
            tuple(
                # The activations' bits break ties, so that all layers of a block agree.
                best(choices, key=lambda c: (size.layer_bytes(block, layer, c), c.a_bits))
                for layer in range(block.depth)
            )
            for block in searched.blocks
        )

    return picked(min), picked(max)
