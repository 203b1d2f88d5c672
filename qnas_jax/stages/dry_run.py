"""Exports what a search may find before it begins."""

import logging
import pathlib
import tempfile

from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.export.runtimes import Runtime
from qnas_jax.hardware import size
from qnas_jax.profiling import probes
from qnas_jax.run import disk
from qnas_jax.stages.experiment import Setting

logger = logging.getLogger(__name__)


def dry_run(setting: Setting, runtime: Runtime) -> None:
    """Exports the smallest and the largest subnet with made-up weights, and runs each once.

    Raises:
      InputError: One of them cannot be written, or does not run.
    """
    for name, subnet in zip(("smallest", "largest"), extremes(setting), strict=True):
        network = probes.network(setting.student, subnet, setting.picture())
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
                    "take what it does not run out of the space"
                ) from error
            kilobytes = path.stat().st_size / 1e3
        logger.info("%s runs the %s subnet, %.1f kB", runtime.name, name, kilobytes)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def extremes(setting: Setting) -> tuple[space.Subnet, space.Subnet]:
    """The smallest and the largest subnet by size."""
    choices = [space.Choice(op, *pair) for pair in setting.bits for op in setting.searched.ops]

    def picked(best):
        return tuple(
            tuple(
                # Ties go by the activations' bits, so that all layers of a block agree.
                best(choices, key=lambda c: (size.layer_bytes(block, layer, c), c.a_bits))
                for layer in range(block.depth)
            )
            for block in setting.searched.blocks
        )

    return picked(min), picked(max)
