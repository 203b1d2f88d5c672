"""A network as a list of units: what runs in which order, and who reads whom.

`trace` runs a module on abstract values and records its units (`nn/units.py`). Export, layer lists,
costs and synthetic networks derive from what it returns, so your own module needs nothing else
to be exported or timed.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.nn.conv import ConvBnAct
from qnas_jax.nn.fake_quant import OnGrid
from qnas_jax.nn.units import UNITS

IMAGE = "image"  # name of what the traced module reads

Shape = tuple[int, int, int]  # height, width, channels of one image


class Unit(NamedTuple):
    """A unit of a network.

    Attributes:
      name: Path of the module, "encoder/stem"; its variables are there in every collection.
      module: The module, unbound; its type is the kind of the unit.
      inputs: Names of the units that it reads, in order; `IMAGE` is the input of the network.
      in_shape: Shape of the first that it reads.
      out_shape: Shape of its output.
      site: Its place in the search space; None outside of searched blocks.
    """

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    in_shape: Shape
    out_shape: Shape
    site: space.Site | None

    @property
    def conv(self) -> space.Conv | None:
        """The record of a convolution; None for other units."""
        layer, (height, width, channels) = self.module, self.in_shape
        if not isinstance(layer, ConvBnAct):
            return None
        groups = channels if layer.depthwise else 1
        how = (layer.kernel, layer.stride, layer.dilation, groups, channels, layer.features)
        return space.Conv(self.name, *how, height, width)

    @property
    def has_grid(self) -> bool:
        """Whether its output has a grid of its own where quantized."""
        return isinstance(self.module, OnGrid) or getattr(self.module, "grid", False)

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations for one image; those of convolutions alone."""
        return self.conv.macs if self.conv else 0


class Trace(NamedTuple):
    """The units of a network in the order in which they run.

    Attributes:
      units: All units.
      image_shape: Of the input.
      output: Name of the unit that gives the network's only output; None for several.
    """

    units: tuple[Unit, ...]
    image_shape: Shape
    output: str | None

    @property
    def convs(self) -> list[space.Conv]:
        """The convolutions."""
        return convs(self.units)

    @property
    def stem(self) -> tuple[Unit, ...]:
        """The units before the first searched layer; all where none is searched."""
        return self.units[: self._searched.start]

    @property
    def head(self) -> tuple[Unit, ...]:
        """The units after the last searched layer."""
        return self.units[self._searched.stop :]

    @property
    def encoder(self) -> tuple[Unit, ...]:
        """All units but the head."""
        return self.units[: self._searched.stop]

    @property
    def _searched(self) -> range:
        places = [i for i, unit in enumerate(self.units) if unit.site]
        end = len(self.units)
        return range(places[0], places[-1] + 1) if places else range(end, end)


def convs(units: Sequence[Unit]) -> list[space.Conv]:
    """The convolutions among units."""
    return [unit.conv for unit in units if unit.conv]


def trace(module: nn.Module, image_shape: Shape) -> Trace:
    """The units of a module in the order in which they run on one image.

    Nothing is computed: the module runs on abstract values.

    Args:
      module: A module of units; it is called with images alone.
      image_shape: Height, width and channels.

    Raises:
      InputError: A module has a name with "/".
      ValueError: A unit reads what no unit gives, or runs twice.
    """
    units, outputs = [], []

    def run(image):
        recorder = _Recorder(units, {id(image): (IMAGE, image)}, [])
        with nn.intercept_methods(functools.partial(_watch, recorder)):
            out, _ = module.init_with_output(jax.random.key(0), image)
        outputs.extend(recorder.given.get(id(out), ())[:1])

    jax.eval_shape(run, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    return Trace(tuple(units), image_shape, outputs[0] if outputs else None)


class _Recorder(NamedTuple):
    """What was seen so far.

    Attributes:
      units: The units.
      given: The name of the unit that gives an array, and the array, by the array's id. The
        array is kept because the id of a deleted one may be used again.
      running: The modules whose `__call__` has begun and not ended, outermost first.
    """

    units: list[Unit]
    given: dict[int, tuple[str, Any]]
    running: list[nn.Module]


def _watch(recorder: _Recorder, call: Callable, args, kwargs, context) -> Any:
    """Runs a method of a module, and records a unit; see `nn.intercept_methods`."""
    module = context.module
    if context.method_name != "__call__":
        return call(*args, **kwargs)
    if module.path and "/" in module.path[-1]:
        raise InputError(
            f"the name {module.path[-1]!r} of a {type(module).__name__}: must have no '/', which "
            "joins the names of a module and its submodules; take another name"
        )
    within = any(isinstance(outer, UNITS) for outer in recorder.running)
    recorder.running.append(module)
    out = call(*args, **kwargs)
    recorder.running.pop()
    if within:
        return out
    name = "/".join(module.path)
    if isinstance(module, UNITS):
        unit = _unit(recorder, name, module, _arrays((args, kwargs)), out)
        recorder.units.append(unit)
        recorder.given[id(out)] = (name, out)
    elif isinstance(module, OnGrid):
        raise ValueError(f"{name}: {type(module).__name__} is no unit; units have their own grids")
    return out


def _arrays(given: Any) -> list[jax.Array]:
    return [leaf for leaf in jax.tree.leaves(given) if isinstance(leaf, jax.Array)]


def _unit(recorder: _Recorder, name: str, module: Any, read: list[jax.Array], out) -> Unit:
    if any(unit.name == name for unit in recorder.units):
        raise ValueError(f"{name}: runs twice; make a unit for each call")
    for x in read:
        if id(x) not in recorder.given:
            kinds = ", ".join(kind.__name__ for kind in UNITS)
            shape = "x".join(map(str, x.shape[1:]))
            raise ValueError(f"{name}: reads {shape} values that no unit gives; units are {kinds}")
    inputs = tuple(recorder.given[id(x)][0] for x in read)
    places = [getattr(outer, "place", None) for outer in reversed(recorder.running)]
    place: Any = next((place for place in places if place), None)
    site = space.Site(place[0], place[1], module.name) if place else None
    unbound = module.clone(parent=None)  # holds no abstract values
    return Unit(name, unbound, inputs, _shape(read[0]), _shape(out), site)


def _shape(x: jax.Array) -> Shape:
    _, height, width, channels = x.shape
    return height, width, channels
