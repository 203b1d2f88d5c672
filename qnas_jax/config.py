"""What a run is told: one slotted dataclass for each stage; each checks itself.

A config file holds `get_config()`, which returns a `Config`; every field can be set on
the command line, `--config.train.steps=300`. The defaults are the published setup of
Lu et al., 2023 (https://arxiv.org/abs/2401.12350), or where it says nothing, as
`configs/cityscapes.py` states.
"""

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

from qnas_jax.errors import InputError

BLOCKS = 6  # that MobileNetV2 is cut into, behind the stem and the first group


@dataclasses.dataclass(slots=True)
class Data:
    """The pictures."""

    source: str = "streets"  # "streets" (rendered) or "cityscapes" (read from root)
    root: str = ""  # the folder with leftImg8bit/ and gtFine/
    height: int = 1024  # pixels, of whole pictures
    width: int = 2048
    train_images: int = 0  # 0: all there are (Streets must say how many)
    val_images: int = 0
    seed: int = 0  # of Streets
    threads: int = 4  # that make training batches

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        _one_of("data.source", self.source, ("streets", "cityscapes"))
        if self.source == "cityscapes" and not self.root:
            raise InputError("data.root='': must be the folder with leftImg8bit/ and gtFine/")
        _at_least("data.height", self.height, 32)
        _at_least("data.width", self.width, 32)
        images = 1 if self.source == "streets" else 0
        _at_least("data.train_images", self.train_images, images)
        _at_least("data.val_images", self.val_images, images)
        _at_least("data.seed", self.seed, 0)
        _at_least("data.threads", self.threads, 1)


@dataclasses.dataclass(slots=True)
class Network:
    """DeepLabV3 on MobileNetV2: the teacher, and all of a subnet but its blocks' ops."""

    width: float = 1.0  # multiplier of MobileNetV2's channels
    strides: tuple[int, ...] = (1, 2, 2, 1, 1, 1, 1)  # of its seven groups
    dilations: tuple[int, ...] = (1, 1, 1, 2, 2, 4, 4)
    head_channels: int = 512
    rates: tuple[int, ...] = (12, 24, 36)  # dilations in the head
    dropout: float = 0.1  # ahead of the classifier

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        _within("network.width", self.width, 0.1, 4.0)
        for name in ("strides", "dilations"):
            _length(f"network.{name}", getattr(self, name), BLOCKS + 1)
        _all("network.strides", self.strides, lambda s: s in (1, 2), "strides are 1 or 2")
        _all("network.dilations", self.dilations, lambda d: d >= 1, "at least 1")
        _at_least("network.head_channels", self.head_channels, 8)
        _all("network.rates", self.rates, lambda r: r >= 1, "at least 1")
        _within("network.dropout", self.dropout, 0.0, 0.9)


@dataclasses.dataclass(slots=True)
class Train:
    """How whole networks are trained: the teacher and the chosen subnets alike."""

    steps: int = 80_000
    batch: int = 8
    lr: float = 0.01
    momentum: float = 0.9
    power: float = 0.9  # of the polynomial schedule, which ends at 0
    weight_decay: float = 5e-4  # of kernels; not of norms and biases
    crop: tuple[int, int] = (512, 1024)  # height, width
    scale: tuple[float, float] = (0.5, 2.0)  # random scale, smallest and largest

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        _check_sgd("train", self)
        _above_zero("train.lr", self.lr)
        _length("train.crop", self.crop, 2)
        _all("train.crop", self.crop, lambda c: c >= 32, "at least 32 pixels")
        _length("train.scale", self.scale, 2)
        if not 0 < self.scale[0] <= self.scale[1]:
            raise InputError(f"train.scale={self.scale}: smallest, then largest, above 0")


@dataclasses.dataclass(slots=True)
class Teacher:
    """Where the teacher comes from."""

    checkpoint: str = ""  # a teacher/checkpoint folder of another run; "": train one

    def check(self) -> None:
        """All values can be used."""


@dataclasses.dataclass(slots=True)
class Space:
    """What the search may choose from."""

    kernels: tuple[int, ...] = (3, 5, 7)
    expansions: tuple[int, ...] = (3, 6)
    depths: tuple[int, ...] = (3, 3, 4, 4, 3, 1)  # layers of each block
    # Bitwidths to choose from: weights w_bits[i] together with activations a_bits[i].
    # (8,) and (8,): INT8; (4, 6, 8) and (4, 6, 8): the published mixed precision.
    w_bits: tuple[int, ...] = (8,)
    a_bits: tuple[int, ...] = (8,)
    bits_per: str = "block"  # what chooses: a "block" for all its layers, or each "layer"

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        _all("space.kernels", self.kernels, lambda k: k % 2 == 1 and k >= 3, "odd, from 3")
        _all("space.expansions", self.expansions, lambda e: e >= 2, "at least 2")
        for name in ("kernels", "expansions"):
            _distinct(f"space.{name}", getattr(self, name))
        _length("space.depths", self.depths, BLOCKS)
        _all("space.depths", self.depths, lambda d: 1 <= d <= 6, "depths lie in [1, 6]")
        for name in ("w_bits", "a_bits"):
            bits = getattr(self, name)
            _all(f"space.{name}", bits, lambda b: 2 <= b <= 8, "bitwidths lie in [2, 8]")
        if len(self.w_bits) != len(self.a_bits):
            raise InputError(
                f"space.w_bits={self.w_bits}, space.a_bits={self.a_bits}: as many of the "
                "one as of the other; the first of both is the first choice, and so on"
            )
        _one_of("space.bits_per", self.bits_per, ("block", "layer"))
        _distinct(
            "space.w_bits with space.a_bits", tuple(zip(self.w_bits, self.a_bits, strict=True))
        )


@dataclasses.dataclass(slots=True)
class Supernet:
    """How the supernet's blocks learn to imitate the teacher's."""

    steps: int = 13_334
    batch: int = 8
    lr: tuple[float, ...] = (0.002, 0.005, 0.005, 0.005, 0.005, 0.002)  # of each block
    momentum: float = 0.9
    power: float = 0.9
    weight_decay: float = 1e-4
    sampling: str = "fair"  # or "uniform"; a fair step trains every op once

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        _check_sgd("supernet", self)
        _length("supernet.lr", self.lr, BLOCKS)
        _all("supernet.lr", self.lr, lambda lr: lr > 0, "above 0")
        _one_of("supernet.sampling", self.sampling, ("fair", "uniform"))


@dataclasses.dataclass(slots=True)
class Lut:
    """How every path is scored. Images are those of the training split, from the first."""

    calibration_images: int = 32  # for batch-norm statistics and ranges; run at once
    images: int = 500  # for the NSR
    images_per_pass: int = 8
    nodes_per_pass: int = 0  # prefixes of the tree that are run at once; 0: as memory allows
    ranges: str = "min_max"  # or "percentile" or "mse"
    a_ranges_per: str = "tensor"  # or "channel": no integer hardware runs that; to compare
    time_budget_s: float = 0.0  # no further images are begun after it; 0: no limit

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        for name in ("calibration_images", "images", "images_per_pass"):
            _at_least(f"lut.{name}", getattr(self, name), 1)
        _at_least("lut.nodes_per_pass", self.nodes_per_pass, 0)
        _one_of("lut.ranges", self.ranges, ("min_max", "percentile", "mse"))
        _one_of("lut.a_ranges_per", self.a_ranges_per, ("tensor", "channel"))
        _at_least("lut.time_budget_s", self.time_budget_s, 0)


@dataclasses.dataclass(slots=True)
class Quantize:
    """Post-training quantization of whole networks."""

    images: int = 32  # of the training split, for the ranges
    images_per_pass: int = 8

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        for name in self.__slots__:
            _at_least(f"quantize.{name}", getattr(self, name), 1)


@dataclasses.dataclass(slots=True)
class Search:
    """What is asked of the tables."""

    budget_bytes: int = 0  # of the whole network; its best subnet is retrained too

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        _at_least("search.budget_bytes", self.budget_bytes, 0)


@dataclasses.dataclass(slots=True)
class Retrain:
    """Which subnets of the front are trained to the end."""

    subnets: int = 5  # spread over the front by size
    init: str = "supernet"  # weights to begin with, or "scratch"

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        _at_least("retrain.subnets", self.subnets, 1)
        _one_of("retrain.init", self.init, ("supernet", "scratch"))


@dataclasses.dataclass(slots=True)
class Run:
    """How a run behaves; nothing here changes its results."""

    save_every: int = 500  # training steps between checkpoints
    log_every: int = 50  # training steps between lines of metrics
    eval_batch: int = 1  # pictures at once when a network is measured

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        for name in self.__slots__:
            _at_least(f"run.{name}", getattr(self, name), 1)


@dataclasses.dataclass(slots=True)
class Config:
    """A whole run."""

    seed: int = 0  # of all training and sampling
    data: Data = dataclasses.field(default_factory=Data)
    network: Network = dataclasses.field(default_factory=Network)
    train: Train = dataclasses.field(default_factory=Train)
    teacher: Teacher = dataclasses.field(default_factory=Teacher)
    space: Space = dataclasses.field(default_factory=Space)
    supernet: Supernet = dataclasses.field(default_factory=Supernet)
    lut: Lut = dataclasses.field(default_factory=Lut)
    quantize: Quantize = dataclasses.field(default_factory=Quantize)
    search: Search = dataclasses.field(default_factory=Search)
    retrain: Retrain = dataclasses.field(default_factory=Retrain)
    run: Run = dataclasses.field(default_factory=Run)

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        _at_least("seed", self.seed, 0)
        for field in dataclasses.fields(self):
            check = getattr(getattr(self, field.name), "check", None)
            if check:
                check()
        known = self.data.train_images
        for name, wanted in (
            ("lut.calibration_images", self.lut.calibration_images),
            ("lut.images", self.lut.images),
            ("quantize.images", self.quantize.images),
        ):
            if known and wanted > known:
                raise InputError(f"{name}={wanted}: data.train_images is only {known}")


def _keys() -> list[str]:
    """Every setting, as it is written behind `--config.`."""
    default = Config()
    keys = []
    for field in dataclasses.fields(Config):
        section = getattr(default, field.name)
        inner = dataclasses.fields(section) if dataclasses.is_dataclass(section) else ()
        keys += [f"{field.name}.{f.name}" for f in inner] or [field.name]
    return keys


def knows(key: str) -> bool:
    """Whether there is a setting `--config.KEY`."""
    return key in _keys()


def unknown_key(key: str) -> InputError:
    """The error for a setting that does not exist."""
    near = difflib.get_close_matches(key, _keys(), n=1, cutoff=0.4)
    hint = f"; did you mean config.{near[0]}?" if near else ""
    return InputError(f"config.{key}: no such setting{hint}")


def _at_least(name: str, value: int | float, least: int | float) -> None:
    if not value >= least:
        raise InputError(f"{name}={value}: must be at least {least}")


def _above_zero(name: str, value: float) -> None:
    if not value > 0:
        raise InputError(f"{name}={value}: must be above 0")


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise InputError(f"{name}={value}: must lie in [{least}, {most}]")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name}={value!r}: must be {' or '.join(map(repr, allowed))}")


def _length(name: str, values: tuple, length: int) -> None:
    if len(values) != length:
        raise InputError(f"{name}={values}: must be {length} numbers")


def _all(name: str, values: tuple, good: Callable[[Any], bool], rule: str) -> None:
    if not values or not all(good(value) for value in values):
        raise InputError(f"{name}={values}: {rule}")


def _distinct(name: str, values: tuple) -> None:
    if len(set(values)) < len(values):
        raise InputError(f"{name}={values}: each only once")


def _check_sgd(name: str, section: Train | Supernet) -> None:
    _at_least(f"{name}.steps", section.steps, 1)
    _at_least(f"{name}.batch", section.batch, 1)
    _within(f"{name}.momentum", section.momentum, 0.0, 0.999)
    _above_zero(f"{name}.power", section.power)
    _at_least(f"{name}.weight_decay", section.weight_decay, 0.0)
