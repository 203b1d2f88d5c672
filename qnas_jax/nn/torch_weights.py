"""Weights of published PyTorch networks as variables of this project's networks.

Three are known: MobileNetV2 of torchvision and of timm (`mobilenetv2_100`), and DeepLabV3 on
MobileNetV2 of MMSegmentation (M-V2-D8). They agree with this project in all but three things:

- They read normalized images, ``(pixel - MEAN) / STD``. The scale is folded into the kernel of
  the stem and the shift into the mean of its norm.
- A zero around a normalized image is the pixel `MEAN`, so the stem must have it as its padding.
- MMSegmentation dilates only the first layer of a group.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from qnas_jax.errors import InputError
from qnas_jax.nn.classifier import Classifier
from qnas_jax.nn.deeplab import DeepLabV3
from qnas_jax.nn.mobilenet import MobileNetV2

# Of ImageNet, RGB, in 0 to 255: what all three normalize by.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

STEM = "encoder/stem"
MOST_NAMES = 10  # of missing or unknown tensors in an error message

Tensors = Mapping[str, np.ndarray]


class Unit(NamedTuple):
    """Where a convolution lies here and there."""

    name: str  # here, "encoder/stem"
    conv: str  # there, "features.0.0"
    norm: str = ""  # there; "" for a convolution with a bias


class Layout(NamedTuple):
    """How a library names the tensors of a network.

    Attributes:
      title: Whose network it is.
      marker: A tensor that it has and the other layouts have not.
      kind: The network here.
      units: Its convolutions.
      ignored: Beginnings of names that have no place here.
    """

    title: str
    marker: str
    kind: type[nn.Module]
    units: Callable[[Any], Iterator[Unit]]
    ignored: tuple[str, ...] = ()


def _layers(encoder: MobileNetV2) -> Iterator[tuple[int, int, str]]:
    """Group, layer in the group, and the name of the layer here."""
    for group, block in enumerate((encoder.first, *encoder.blocks)):
        for layer in range(block.depth):
            yield group, layer, f"encoder/block{group}/layer{layer}"


def _torchvision(model: Classifier) -> Iterator[Unit]:
    yield Unit(STEM, "features.0.0", "features.0.1")
    number = 1
    for group, _, name in _layers(model.encoder):
        there = f"features.{number}.conv"
        parts = ["expand", "depthwise"] if group else ["depthwise"]
        for i, part in enumerate(parts):
            yield Unit(f"{name}/{part}", f"{there}.{i}.0", f"{there}.{i}.1")
        yield Unit(f"{name}/project", f"{there}.{len(parts)}", f"{there}.{len(parts) + 1}")
        number += 1
    yield Unit("last", f"features.{number}.0", f"features.{number}.1")
    yield Unit("classifier", "classifier.1")


def _timm(model: Classifier) -> Iterator[Unit]:
    yield Unit(STEM, "conv_stem", "bn1")
    for group, layer, name in _layers(model.encoder):
        convs = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
        if not group:
            convs = {"depthwise": "conv_dw", "project": "conv_pw"}
        for i, (part, conv) in enumerate(convs.items(), start=1):
            there = f"blocks.{group}.{layer}"
            yield Unit(f"{name}/{part}", f"{there}.{conv}", f"{there}.bn{i}")
    yield Unit("last", "conv_head", "bn2")
    yield Unit("classifier", "classifier")


def _mmsegmentation(model: DeepLabV3) -> Iterator[Unit]:
    def module(name: str, there: str) -> Unit:
        return Unit(name, f"{there}.conv", f"{there}.bn")

    yield module(STEM, "backbone.conv1")
    for group, layer, name in _layers(model.encoder):
        parts = ["expand", "depthwise", "project"] if group else ["depthwise", "project"]
        for i, part in enumerate(parts):
            yield module(f"{name}/{part}", f"backbone.layer{group + 1}.{layer}.conv.{i}")
    yield module("aspp/pool", "decode_head.image_pool.1")
    for i, branch in enumerate(("point", *(f"rate{rate}" for rate in model.rates))):
        yield module(f"aspp/{branch}", f"decode_head.aspp_modules.{i}")
    yield module("aspp/join", "decode_head.bottleneck")
    yield Unit("classifier", "decode_head.conv_seg")


LAYOUTS = (
    Layout("torchvision's MobileNetV2", "features.0.0.weight", Classifier, _torchvision),
    Layout("timm's MobileNetV2", "conv_stem.weight", Classifier, _timm),
    Layout(
        *("MMSegmentation's DeepLabV3 on MobileNetV2", "backbone.conv1.conv.weight"),
        *(DeepLabV3, _mmsegmentation, ("auxiliary_head.",)),
    ),
)


def variables(found: Tensors, model: nn.Module, like: PyTree) -> PyTree:
    """Returns a network's `params` and `batch_stats` from the tensors of a published one.

    Args:
      found: The tensors by name.
      model: The network: a `Classifier` or a `DeepLabV3`.
      like: Its `params` and `batch_stats`, or their shapes.

    Raises:
      InputError: They are of another network, or have other shapes.
    """
    tensors = {name.removeprefix("module."): value for name, value in found.items()}
    layout = _layout(tensors, model)
    _check_network(model)
    units = tuple(layout.units(model))
    _check_names(tensors, units, layout)
    return _variables(tensors, units, like)


def _layout(tensors: Tensors, model: nn.Module) -> Layout:
    fitting = [layout for layout in LAYOUTS if isinstance(model, layout.kind)]
    for layout in LAYOUTS:
        if layout.marker in tensors:
            if layout not in fitting:
                wanted = " or ".join(one.title for one in fitting)
                raise InputError(f"holds {layout.title}, must hold {wanted}")
            return layout
    known = ", ".join(layout.title for layout in LAYOUTS)
    raise InputError(f"holds another network (it begins with {next(iter(tensors))}), not {known}")


def _check_network(model: Any) -> None:
    """Refuses a network that computes something else from the same weights."""
    encoder = model.encoder
    if not np.allclose(encoder.padding or (0.0,) * 3, np.array(MEAN) / 128 - 1):
        raise InputError(
            f"was trained with the mean colour around images; set --config.network.padding='{MEAN}'"
        )
    blocks = (encoder.first, *encoder.blocks)
    if any(block.layer_dilation(i) > 1 for block in blocks for i in range(1, block.depth)):
        raise InputError(
            "only the first layer of each group is dilated; set --config.network.dilate=first"
        )


def _check_names(tensors: Tensors, units: tuple[Unit, ...], layout: Layout) -> None:
    """Refuses missing and unknown tensors, all in one line."""
    wanted = {name for unit in units for name in _sources(unit).values()}
    held = {
        name
        for name in tensors
        if not (name.endswith(".num_batches_tracked") or name.startswith(layout.ignored))
    }
    wrong = [
        f"{len(names)} tensors are {what} ({_listed(names)})"
        for what, names in (("missing", wanted - held), ("unknown", held - wanted))
        if names
    ]
    if wrong:
        raise InputError(f"is not {layout.title} as configured: {'; '.join(wrong)}")


def _listed(names: set[str]) -> str:
    shown, more = sorted(names)[:MOST_NAMES], len(names) - MOST_NAMES
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _sources(unit: Unit) -> dict[tuple[str, str], str]:
    """The tensors of a convolution, by collection and place here."""
    kernel = {("params", f"{unit.name}/kernel"): f"{unit.conv}.weight"}
    if not unit.norm:
        return kernel | {("params", f"{unit.name}/bias"): f"{unit.conv}.bias"}
    return kernel | {
        ("params", f"{unit.name}/norm/scale"): f"{unit.norm}.weight",
        ("params", f"{unit.name}/norm/bias"): f"{unit.norm}.bias",
        ("batch_stats", f"{unit.name}/norm/mean"): f"{unit.norm}.running_mean",
        ("batch_stats", f"{unit.name}/norm/var"): f"{unit.norm}.running_var",
    }


def _variables(tensors: Tensors, units: tuple[Unit, ...], like: PyTree) -> PyTree:
    sources = {place: name for unit in units for place, name in _sources(unit).items()}
    found = {place: _here(tensors[name]) for place, name in sources.items()}
    kernel, mean = ("params", f"{STEM}/kernel"), ("batch_stats", f"{STEM}/norm/mean")
    scale, shift = 128 / np.array(STD), (128 - np.array(MEAN)) / np.array(STD)
    wide = found[kernel].astype(np.float64)
    if wide.shape[2:3] == scale.shape:  # else refused below
        found[kernel] = wide * scale[:, None]
        found[mean] = found[mean] - np.einsum("klio,i->o", wide, shift)

    def value(path, leaf):
        collection, *names = (key.key for key in path)
        place = collection, "/".join(names)
        if place not in found:
            raise InputError(f"has nothing for {place[1]}")
        if found[place].shape != leaf.shape:
            raise InputError(_other_shape(sources[place], names[0], found[place], leaf.shape))
        return jnp.asarray(found[place], jnp.float32)

    kinds = {name: like[name] for name in ("params", "batch_stats")}
    return jax.tree_util.tree_map_with_path(value, kinds)


def _here(tensor: np.ndarray) -> Float[np.ndarray, "*shape"]:
    """A tensor in the order of this project: kernels are [k, k, inputs, outputs]."""
    if tensor.ndim == 2:
        tensor = tensor[:, :, None, None]
    wide = tensor.astype(np.float64)
    return wide.transpose(2, 3, 1, 0) if wide.ndim == 4 else wide


def _other_shape(name: str, unit: str, found: np.ndarray, wanted: tuple[int, ...]) -> str:
    if unit == "classifier" and found.shape[:-1] == wanted[:-1]:
        return f"has {found.shape[-1]} classes, the task has {wanted[-1]}"
    return (
        f"{name} has the shape {found.shape} here, the network {wanted}; network.width and "
        "network.head_channels must be those of the file"
    )
