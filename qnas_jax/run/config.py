"""The sections of a config that several systems share. Each section checks itself.

A system's config (such as `bwnas/config.py`) is a dataclass of sections. Every field can be set
on the command line: `--config.train.steps=300`.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from qnas_jax.errors import InputError
from qnas_jax.run import checks
from qnas_jax.run.recipes import Quantize
from qnas_jax.space import LEAST_BITS, MOST_BITS, Bits

SOURCES = ("streets", "cityscapes", "objects", "digits", "folder", "tfds")  # of images
RENDERED = ("streets", "objects")
CORRUPTIONS = ("dark", "fog", "noise", "blur")
ROOTS = {
    "cityscapes": "leftImg8bit/ and gtFine/",
    "folder": "train/CLASS/ and val/CLASS/",
    "tfds": "TFDS's data sets",
}

# A teacher for rendered streets, which its `teacher.md` describes.
STREETS_TEACHER = str(pathlib.Path(__file__).parents[1] / "data/streets/teacher.safetensors")
# One for rendered objects, that of `configs/objects.py`; see `objects.md` beside it.
OBJECTS_TEACHER = str(pathlib.Path(__file__).parents[1] / "data/streets/objects.safetensors")

BLOCKS = 6  # blocks of MobileNetV2, after the stem and the first group


@dataclasses.dataclass(slots=True)
class Data:
    """The images."""

    source: str = "streets"  # one of SOURCES; see docs/data.md
    root: str = ""  # the folder with the files
    name: str = ""  # of a builder of TFDS
    height: int = 1024  # pixels of a whole image
    width: int = 2048
    train_images: int = 0  # 0: all images there are; rendered ones need a number
    val_images: int = 0
    seed: int = 0  # of rendered images
    # What shifts them, with a strength in (0, 1]: (("dark", 0.5),). See data/corruptions.py.
    corruptions: tuple[tuple[str, float], ...] = ()
    # Classes that count more or less than the others, or not at all: (("car", 4.0), ("bus", 0.0)).
    frequencies: tuple[tuple[str, float], ...] = ()
    threads: int = 4  # threads that make training batches
    cache_mb: int = 512  # memory for read images of each split; the others are read again

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        checks.one_of("data.source", self.source, SOURCES)
        if self.source in ROOTS and not self.root:
            raise InputError(f"data.root='': must be the folder with {ROOTS[self.source]}")
        if self.source == "tfds" and not self.name:
            raise InputError("data.name='': must be a builder of TFDS, like 'cifar10'")
        images = 1 if self.source in RENDERED else 0
        least = {"height": 32, "width": 32, "train_images": images, "val_images": images}
        for name, value in {**least, "seed": 0, "threads": 1, "cache_mb": 0}.items():
            checks.at_least(f"data.{name}", getattr(self, name), value)
        check_corruptions("data.corruptions", self.corruptions)
        checks.bounds("data.frequencies", self.frequencies, (), zero=True)


def check_corruptions(name: str, pairs: tuple[tuple[str, float], ...]) -> None:
    """Raises InputError for corruptions that cannot be used."""
    checks.bounds(name, pairs, CORRUPTIONS)
    for kind, strength in pairs:
        checks.within(f"{name}: {kind!r}", strength, 0.0, 1.0)


@dataclasses.dataclass(slots=True)
class Network:
    """MobileNetV2 with the head of the task, for the teacher and for all subnets.

    Segmentation has the head of DeepLabV3; classification has a 1x1 convolution, the mean over
    the pixels, and the classifier.
    """

    stem_stride: int = 2  # of the first convolution; 1 for images of 32 x 32 pixels or so
    width: float = 1.0  # multiplier of MobileNetV2's channels
    teacher_width: float = 0.0  # of the teacher, wider than its subnets; 0: the same
    strides: tuple[int, ...] = (1, 2, 2, 1, 1, 1, 1)  # of its seven groups
    dilations: tuple[int, ...] = (1, 1, 1, 2, 2, 4, 4)
    dilate: str = "all"  # layers of a group that are dilated: "all" or the "first" alone
    padding: tuple[float, ...] = (128.0, 128.0, 128.0)  # the pixel (RGB) around an image
    head_channels: int = 512  # classification: of the last convolution; 1280 as published
    rates: tuple[int, ...] = (12, 24, 36)  # segmentation: dilations in the head
    dropout: float = 0.1  # before the classifier

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        if self.stem_stride not in (1, 2):
            raise InputError(f"network.stem_stride={self.stem_stride}: must be 1 or 2")
        checks.within("network.width", self.width, 0.1, 4.0)
        if self.teacher_width and not self.width <= self.teacher_width <= 4.0:
            rule = f"must lie in [network.width={self.width}, 4.0], or be 0"
            raise InputError(f"network.teacher_width={self.teacher_width}: {rule}")
        for name in ("strides", "dilations"):
            checks.length(f"network.{name}", getattr(self, name), BLOCKS + 1)
        checks.all_of("network.strides", self.strides, lambda s: s in (1, 2), "strides are 1 or 2")
        checks.all_of("network.dilations", self.dilations, lambda d: d >= 1, "at least 1")
        checks.one_of("network.dilate", self.dilate, ("all", "first"))
        checks.length("network.padding", self.padding, 3)
        checks.all_of("network.padding", self.padding, lambda p: 0 <= p <= 255, "0 to 255")
        checks.at_least("network.head_channels", self.head_channels, 8)
        checks.all_of("network.rates", self.rates, lambda r: r >= 1, "at least 1")
        checks.distinct("network.rates", self.rates)
        checks.within("network.dropout", self.dropout, 0.0, 0.9)


@dataclasses.dataclass(slots=True)
class Train:
    """How whole networks are trained: the teacher and the chosen subnets."""

    steps: int = 80_000
    batch: int = 8
    # Of a batch, each with batch-norm statistics of its own. With as many parts as devices, these
    # exchange nothing at norms.
    parts: int = 1
    optimizer: str = "sgd"  # with a polynomial schedule; or "adamw", with a cosine
    lr: float = 0.01  # the highest
    momentum: float = 0.9  # sgd
    power: float = 0.9  # sgd: exponent of the schedule, which ends at 0
    warmup: int = 0  # adamw: steps before the highest learning rate; 0 with sgd
    weight_decay: float = 5e-4  # of kernels; not of norms and biases
    clip: float = 0.0  # largest norm of the gradients; 0: they are not clipped
    crop: tuple[int, int] = (512, 1024)  # height, width
    scale: tuple[float, float] = (0.5, 2.0)  # random scale, smallest and largest
    flip: bool = True  # half of the images, left to right; not where that changes the class
    compute: str = "float32"  # or "bfloat16", for accelerators; parameters stay float32

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        checks.training("train", self)
        checks.at_least("train.parts", self.parts, 1)
        if self.batch % self.parts:
            raise InputError(f"train.parts={self.parts}: must divide train.batch={self.batch}")
        checks.above_zero("train.lr", self.lr)
        checks.length("train.crop", self.crop, 2)
        checks.all_of("train.crop", self.crop, lambda c: c >= 32, "at least 32 pixels")
        checks.length("train.scale", self.scale, 2)
        if not 0 < self.scale[0] <= self.scale[1]:
            raise InputError(f"train.scale={self.scale}: smallest, then largest, above 0")


@dataclasses.dataclass(slots=True)
class Teacher:
    """Where the teacher comes from."""

    # A teacher/checkpoint folder of another run, or a .safetensors, .pth or .pt file of PyTorch
    # (docs/teachers.md); "": train one.
    checkpoint: str = ""
    finetune: bool = False  # the given teacher is trained on, as `train` says

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        if self.finetune and not self.checkpoint:
            raise InputError("teacher.finetune=True: needs teacher.checkpoint")


@dataclasses.dataclass(slots=True)
class Space:
    """The ops, depths and bitwidths to choose from."""

    kernels: tuple[int, ...] = (3, 5, 7)
    expansions: tuple[int, ...] = (3, 6)
    depths: tuple[int, ...] = (3, 3, 4, 4, 3, 1)  # layers of each block
    # Bitwidths to choose from: weights of w_bits[i] with activations of a_bits[i].
    # (8,) and (8,): INT8; (4, 6, 8) and (4, 6, 8): the published mixed precision.
    w_bits: tuple[int, ...] = (8,)
    a_bits: tuple[int, ...] = (8,)
    bits_per: str = "block"  # one choice for all layers of a "block", or one for each "layer"

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        checks.all_of("space.kernels", self.kernels, lambda k: k % 2 == 1 and k >= 3, "odd, from 3")
        checks.all_of("space.expansions", self.expansions, lambda e: e >= 2, "at least 2")
        for name in ("kernels", "expansions"):
            checks.distinct(f"space.{name}", getattr(self, name))
        checks.length("space.depths", self.depths, BLOCKS)
        checks.all_of("space.depths", self.depths, lambda d: 1 <= d <= 6, "depths lie in [1, 6]")
        for name in ("w_bits", "a_bits"):
            bits = getattr(self, name)
            rule = f"bitwidths lie in [{LEAST_BITS}, {MOST_BITS}]"
            checks.all_of(f"space.{name}", bits, lambda b: LEAST_BITS <= b <= MOST_BITS, rule)
        if len(self.w_bits) != len(self.a_bits):
            both = f"space.w_bits={self.w_bits}, space.a_bits={self.a_bits}"
            raise InputError(f"{both}: must be as many; the first of both are one choice")
        checks.one_of("space.bits_per", self.bits_per, ("block", "layer"))
        checks.distinct("space.w_bits with space.a_bits", self.bits)

    @property
    def bits(self) -> tuple[Bits, ...]:
        """The bitwidths of weights and activations to choose from."""
        return tuple(zip(self.w_bits, self.a_bits, strict=True))


@dataclasses.dataclass(slots=True)
class Kernels:
    """Convolutions in C++ for CPUs, see `kernels/native.py`."""

    compile: str = "auto"  # on first use; or "never": what an earlier run compiled, else XLA

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        checks.one_of("kernels.compile", self.compile, ("auto", "never"))


@dataclasses.dataclass(slots=True)
class Hardware:
    """The device to search for; see docs/targets.md."""

    target: str = "none"  # a name in hardware/target.py; "none": only the size is known
    table: str = ""  # a CSV file of measured latencies for the search to use; "": none
    image_size: tuple[int, int] = (0, 0)  # height, width of deployed images; 0: those of the data

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        checks.length("hardware.image_size", self.image_size, 2)
        if tuple(self.image_size) != (0, 0):
            rule = "at least 32 pixels, or (0, 0)"
            checks.all_of("hardware.image_size", self.image_size, lambda p: p >= 32, rule)


@dataclasses.dataclass(slots=True)
class Export:
    """The exported files of the teacher and of the retrained subnets."""

    max_drop: float = 1.0  # points of mIoU or accuracy that a file may lose; an error beyond

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        checks.at_least("export.max_drop", self.max_drop, 0.0)


@dataclasses.dataclass(slots=True)
class Run:
    """How a run proceeds. Only `per_dispatch` changes its numbers, by rounding."""

    save_every: int = 500  # training steps between checkpoints
    log_every: int = 50  # training steps between lines of metrics
    per_dispatch: int = 1  # training steps in one program, for accelerators; slower on CPUs
    eval_batch: int = 1  # images per batch when a network is evaluated

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        for name in self.__slots__:
            checks.at_least(f"run.{name}", getattr(self, name), 1)
        if self.save_every % self.per_dispatch:  # each length is a program of its own
            rule = f"must divide run.save_every={self.save_every}"
            raise InputError(f"run.per_dispatch={self.per_dispatch}: {rule}")


@runtime_checkable  # for the checks of annotated types in the tests
class Config(Protocol):
    """The sections that the config of every system has."""

    seed: int
    data: Data
    network: Network
    train: Train
    teacher: Teacher
    space: Space
    quantize: Quantize
    hardware: Hardware
    export: Export
    run: Run

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""

    def check_images(self, known: int) -> None:
        """Raises InputError for a setting that asks for more than the known training images."""


def check_sections(config: Any) -> None:
    """Raises InputError for the first value that cannot be used in a dataclass of sections."""
    checks.same_types("", config, type(config)())
    checks.at_least("seed", config.seed, 0)
    for field in dataclasses.fields(config):
        if check := getattr(getattr(config, field.name), "check", None):
            check()


def check_images(known: int, wanted: Mapping[str, int]) -> None:
    """Raises InputError for a setting that asks for more than the known training images."""
    for name, count in wanted.items():
        if count > known:
            raise InputError(f"{name}={count}: there are {known} training images")
