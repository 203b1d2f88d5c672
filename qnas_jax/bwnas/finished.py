"""The trained networks of a run that is finished, found without training anything."""

import pathlib
from typing import NamedTuple

from qnas_jax import space
from qnas_jax.bwnas import train_supernet
from qnas_jax.errors import InputError
from qnas_jax.hardware import size
from qnas_jax.nn.deeplab import DeepLabV3
from qnas_jax.run.listing import listed
from qnas_jax.run.stage import Stage, read_json
from qnas_jax.stages import train as train_stage
from qnas_jax.stages.experiment import Setting


class Network(NamedTuple):
    """A network that was trained and measured.

    Attributes:
      source: The stage that did.
      model: The network.
      subnet: Its ops and bitwidths.
    """

    source: Stage
    model: DeepLabV3
    subnet: space.Subnet


def subnets(workdir: pathlib.Path) -> list[str]:
    """The retrained subnets of a run, in order of their names.

    Raises:
      InputError: There is none.
    """
    files = listed(workdir, "retrain/*/metrics.json")
    if not files:
        raise InputError(f"{workdir}: holds no retrained subnet")
    return [read_json(file, "subnet")["subnet"] for file in files]


def trained(setting: Setting) -> list[Network]:
    """The teacher and the retrained subnets of a run, these by their size.

    Raises:
      InputError: There is no retrained subnet, or the run was made with other settings.
    """
    picked = [space.parse_subnet(subnet) for subnet in subnets(setting.workdir)]
    teacher = train_stage.teacher_stage(setting)
    distilled = train_supernet.supernet_stage(setting, teacher)
    found = [Network(teacher, setting.teacher(), setting.teacher_subnet())]
    for subnet in sorted(picked, key=lambda s: size.subnet_bytes(setting.searched.blocks, s)):
        stage = train_stage.subnet_stage(setting, distilled, space.format_subnet(subnet))
        found.append(Network(stage, setting.student(subnet), subnet))
    for network in found:
        if not network.source.done:
            folder = network.source.folder
            raise InputError(f"{folder}: is not finished; launch/main.py goes on with it")
    return found
