"""The network whose bitwidths are chosen, by its name in the config."""

import pathlib
import runpy
from typing import Any

import flax.linen as nn

from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.haq.config import Config
from qnas_jax.nn.mobilenet_v1 import MobileNetV1
from qnas_jax.nn.trace import Trace
from qnas_jax.run import artefacts
from qnas_jax.stages.experiment import Problem, teacher_subnet


def network(config: Config, problem: Problem) -> tuple[nn.Module, space.Subnet]:
    """Returns the network, and its ops if it has any.

    Raises:
      InputError: There is no such network, or it does not fit the task.
    """
    name, classes = config.haq.network, problem.task.classes
    if name == "mobilenet_v2":
        return problem.teacher, teacher_subnet(problem.teacher)
    if name == "mobilenet_v1":
        if problem.task.per_pixel:
            raise InputError("haq.network='mobilenet_v1': classifies whole images, not pixels")
        how = {"stem_stride": config.network.stem_stride, "dropout": config.network.dropout}
        return MobileNetV1(config.network.width, classes, **how), ()
    if ":" in name:
        return _own(name, classes), ()
    try:
        subnet = space.parse_subnet(name)
    except ValueError as error:
        known = "mobilenet_v2, mobilenet_v1, the text of a subnet or FILE.py:FUNCTION"
        raise InputError(f"haq.network={name!r}: must be {known} ({error})") from None
    depths = tuple(len(block) for block in subnet)
    if depths != tuple(config.space.depths):
        raise InputError(
            f"haq.network={name!r}: its blocks have {depths} layers; set space.depths to that"
        )
    return problem.student(subnet), subnet


def _own(name: str, classes: int) -> nn.Module:
    """A network of the user's."""
    file, _, function = name.rpartition(":")
    try:
        found = runpy.run_path(file)[function](classes)
    except Exception as error:  # it is the user's program, and may raise anything
        reason = f"has no {function}()" if isinstance(error, KeyError) else _described(error)
        raise InputError(f"haq.network={name!r}: {reason}") from error
    if not isinstance(found, nn.Module):
        kind = type(found).__name__
        raise InputError(f"haq.network={name!r}: gives a {kind}, must be a flax.linen.Module")
    return found


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def identity(config: Config) -> dict[str, Any]:
    """Returns what the network is, for the marks of stages."""
    name = config.haq.network
    own = pathlib.Path(name.rpartition(":")[0]) if ":" in name else None
    content = {"content": artefacts.digest(own.read_text())} if own else {}
    return {**artefacts.plain(config.network), "name": name.rpartition(":")[2], **content}


def check(traced: Trace, name: str) -> None:
    """Refuses a network without layers to choose bitwidths for.

    Raises:
      InputError: It has fewer than three convolutions; the first and the last keep 8 bits.
    """
    count = len(traced.convs)
    if count < 3:
        raise InputError(
            f"haq.network={name!r}: has {count} convolutions (ConvBnAct); bitwidths are chosen for "
            "those between the first and the last, so it needs at least 3"
        )
