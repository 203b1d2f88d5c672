"""The network whose bitwidths are chosen, by its name in the config."""

import runpy
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.haq.config import Config
from qnas_jax.nn.mobilenet_v1 import MobileNetV1
from qnas_jax.nn.trace import Trace, trace
from qnas_jax.profiling import synthetic
from qnas_jax.run import artefacts, disk, paths
from qnas_jax.stages.experiment import Problem, teacher_subnet

MANY = 100  # more blocks and layers than any subnet has


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
        build = runpy.run_path(str(paths.named("haq.network", file))).get(function)
        found = build(classes) if build else None
    except (Exception, SystemExit) as error:  # it is the user's program, and may raise anything
        raise InputError(f"haq.network={name!r}: {_described(error)}") from error
    if not build:
        raise InputError(f"haq.network={name!r}: {file} has no {function or 'function'}()")
    if not isinstance(found, nn.Module):
        kind = type(found).__name__
        raise InputError(f"haq.network={name!r}: gives a {kind}, must be a flax.linen.Module")
    return found


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def identity(config: Config) -> dict[str, Any]:
    """Returns what the network is, for the marks of stages."""
    name = config.haq.network
    own = paths.named("haq.network", name.rpartition(":")[0]) if ":" in name else None
    content = {"content": artefacts.digest(disk.read(own).decode("latin1"))} if own else {}
    return {**artefacts.plain(config.network), "name": name.rpartition(":")[2], **content}


def traced(model: nn.Module, problem: Problem, name: str) -> Trace:
    """Returns the units of a network after checks that it can be trained, quantized and exported.

    Raises:
      InputError: It cannot, or has nothing to choose for.
    """
    shape, classes = problem.val[0][0].shape, problem.task.classes

    def run(image):
        keys = {name: jax.random.key(0) for name in ("params", "dropout")}
        return model.init_with_output(keys, image, train=True)[0]

    try:
        found = trace(model, shape)
        out = jax.eval_shape(run, jax.ShapeDtypeStruct((2, *shape), jnp.float32))
        synthetic.network(found, [[(8, 8)] * MANY] * MANY, resize=problem.task.per_pixel)
    except Exception as error:  # a network of the user's may raise anything
        raise InputError(f"haq.network={name!r}: {_described(error)}") from error
    if out.shape[-1] != classes:
        raise InputError(
            f"haq.network={name!r}: gives {out.shape[-1]} classes, the data have {classes}"
        )
    if len(found.convs) < 3:
        raise InputError(
            f"haq.network={name!r}: convolutions (ConvBnAct): {len(found.convs)}, must be at least "
            "3, as the first and the last keep 8 bits"
        )
    return found
