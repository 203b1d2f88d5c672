"""The settings of a run: a slotted dataclass for each section, which checks itself.

A config file holds `get_config()`, which returns a `Config`. The defaults are those of Lu et
al., 2023 (https://arxiv.org/abs/2401.12350); `configs/cityscapes.py` says where it is silent.
"""

import dataclasses

from qnas_jax.errors import InputError
from qnas_jax.run import checks
from qnas_jax.space import COSTS

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
        checks.one_of("data.source", self.source, ("streets", "cityscapes"))
        if self.source == "cityscapes" and not self.root:
            raise InputError("data.root='': must be the folder with leftImg8bit/ and gtFine/")
        images = 1 if self.source == "streets" else 0
        least = {"height": 32, "width": 32, "train_images": images, "val_images": images}
        for name, value in {**least, "seed": 0, "threads": 1}.items():
            checks.at_least(f"data.{name}", getattr(self, name), value)


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
        checks.within("network.width", self.width, 0.1, 4.0)
        for name in ("strides", "dilations"):
            checks.length(f"network.{name}", getattr(self, name), BLOCKS + 1)
        checks.all_of("network.strides", self.strides, lambda s: s in (1, 2), "strides are 1 or 2")
        checks.all_of("network.dilations", self.dilations, lambda d: d >= 1, "at least 1")
        checks.at_least("network.head_channels", self.head_channels, 8)
        checks.all_of("network.rates", self.rates, lambda r: r >= 1, "at least 1")
        checks.distinct("network.rates", self.rates)
        checks.within("network.dropout", self.dropout, 0.0, 0.9)


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
    compute: str = "float32"  # or "bfloat16", for accelerators; parameters stay float32

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        checks.training("train", self)
        checks.above_zero("train.lr", self.lr)
        checks.length("train.crop", self.crop, 2)
        checks.all_of("train.crop", self.crop, lambda c: c >= 32, "at least 32 pixels")
        checks.length("train.scale", self.scale, 2)
        if not 0 < self.scale[0] <= self.scale[1]:
            raise InputError(f"train.scale={self.scale}: smallest, then largest, above 0")


@dataclasses.dataclass(slots=True)
class Teacher:
    """Where the teacher comes from."""

    checkpoint: str = ""  # a teacher/checkpoint folder of another run; "": train one


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
        checks.all_of("space.kernels", self.kernels, lambda k: k % 2 == 1 and k >= 3, "odd, from 3")
        checks.all_of("space.expansions", self.expansions, lambda e: e >= 2, "at least 2")
        for name in ("kernels", "expansions"):
            checks.distinct(f"space.{name}", getattr(self, name))
        checks.length("space.depths", self.depths, BLOCKS)
        checks.all_of("space.depths", self.depths, lambda d: 1 <= d <= 6, "depths lie in [1, 6]")
        for name in ("w_bits", "a_bits"):
            bits = getattr(self, name)
            checks.all_of(f"space.{name}", bits, lambda b: 2 <= b <= 8, "bitwidths lie in [2, 8]")
        if len(self.w_bits) != len(self.a_bits):
            both = f"space.w_bits={self.w_bits}, space.a_bits={self.a_bits}"
            raise InputError(f"{both}: must be as many; the first of both are one choice")
        checks.one_of("space.bits_per", self.bits_per, ("block", "layer"))
        pairs = tuple(zip(self.w_bits, self.a_bits, strict=True))
        checks.distinct("space.w_bits with space.a_bits", pairs)


@dataclasses.dataclass(slots=True)
class Supernet:
    """How the supernet's blocks learn to imitate the teacher's."""

    steps: int = 13_334
    batch: int = 8
    lr: tuple[float, ...] = (0.002, 0.005, 0.005, 0.005, 0.005, 0.002)  # of each block
    momentum: float = 0.9
    power: float = 0.9
    weight_decay: float = 1e-4
    clip: float = 0.0  # norm to which a block's longer gradients are shortened; 0: none
    sampling: str = "fair"  # or "uniform"; a fair step trains every op once
    parts: int = 1  # of a batch, each normed by itself: so many devices can share a block
    compute: str = "float32"  # or "bfloat16", for accelerators; parameters stay float32

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        checks.training("supernet", self)
        checks.at_least("supernet.clip", self.clip, 0)
        checks.at_least("supernet.parts", self.parts, 1)
        if self.batch % self.parts:
            rule = f"must divide supernet.batch={self.batch}"
            raise InputError(f"supernet.parts={self.parts}: {rule}")
        checks.length("supernet.lr", self.lr, BLOCKS)
        checks.all_of("supernet.lr", self.lr, lambda lr: lr > 0, "above 0")
        checks.one_of("supernet.sampling", self.sampling, ("fair", "uniform"))


@dataclasses.dataclass(slots=True)
class Lut:
    """How every path is scored, on the first images of the training split."""

    calibration_images: int = 32  # for batch-norm statistics and ranges; run at once
    images: int = 500  # for the NSR
    images_per_pass: int = 8
    nodes_per_pass: int = 0  # prefixes that are run at once; 0: as many as memory allows
    ranges: str = "min_max"  # or "percentile" or "mse"
    a_ranges_per: str = "tensor"  # or "channel", which no integer hardware runs; to compare
    compute: str = "auto"  # the faster here; or "int8"; or "float32": each row to 1e-6 its path
    time_budget_s: float = 0.0  # no chunk of images is begun after it; 0: no limit

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        least = {"calibration_images": 1, "images": 1, "images_per_pass": 1}
        for name, value in {**least, "nodes_per_pass": 0, "time_budget_s": 0}.items():
            checks.at_least(f"lut.{name}", getattr(self, name), value)
        checks.one_of("lut.ranges", self.ranges, ("min_max", "percentile", "mse"))
        checks.one_of("lut.a_ranges_per", self.a_ranges_per, ("tensor", "channel"))
        checks.one_of("lut.compute", self.compute, ("auto", "int8", "float32"))
        if self.compute == "int8" and self.a_ranges_per == "channel":
            raise InputError("lut.compute='int8': must be float32 with lut.a_ranges_per=channel")


@dataclasses.dataclass(slots=True)
class Kernels:
    """Convolutions in C++ for CPUs, see `kernels/native.py`."""

    compile: str = "auto"  # on first use; or "never": what an earlier run compiled, else XLA


@dataclasses.dataclass(slots=True)
class Quantize:
    """Post-training quantization of whole networks."""

    images: int = 32  # of the training split, for the ranges
    images_per_pass: int = 8

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        for name in self.__slots__:
            checks.at_least(f"quantize.{name}", getattr(self, name), 1)


@dataclasses.dataclass(slots=True)
class Hardware:
    """The device that networks are searched for; see docs/targets.md."""

    target: str = "none"  # its name in hardware/target.py; "none": only the size counts
    table: str = ""  # a CSV file of measured latencies, which the search then uses; "": none
    picture: tuple[int, int] = (0, 0)  # height, width as deployed; 0: those of the data

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        checks.length("hardware.picture", self.picture, 2)
        if tuple(self.picture) != (0, 0):
            rule = "at least 32 pixels, or (0, 0)"
            checks.all_of("hardware.picture", self.picture, lambda p: p >= 32, rule)


@dataclasses.dataclass(slots=True)
class Search:
    """What is minimized, and the bounds that a network must keep."""

    costs: tuple[str, ...] = ("size_bytes",)  # with the NSR; also "latency_ms", "energy_mj"
    epsilon: float = 0.0  # allowed relative error of a front of several costs; 0: exact
    # Bounds of costs of the whole network: (("latency_ms", 1.2), ("size_bytes", 700_000)). The
    # best subnet that meets all of them is retrained too.
    budgets: tuple[tuple[str, float], ...] = ()

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        rule = f"must be among {tuple(COSTS)}"
        checks.all_of("search.costs", self.costs, lambda cost: cost in COSTS, rule)
        checks.distinct("search.costs", self.costs)
        checks.within("search.epsilon", self.epsilon, 0.0, 1.0)
        checks.bounds("search.budgets", self.budgets, tuple(COSTS))
        for cost, most in self.budgets:
            if cost not in self.costs:
                raise InputError(
                    f"search.costs={self.costs}: must have {cost!r}, "
                    f"which search.budgets bounds by {most:g}"
                )


@dataclasses.dataclass(slots=True)
class Retrain:
    """Which subnets of the front are trained to the end."""

    subnets: int = 5  # spread over the front by size
    init: str = "supernet"  # weights to begin with, or "scratch"

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        checks.at_least("retrain.subnets", self.subnets, 1)
        checks.one_of("retrain.init", self.init, ("supernet", "scratch"))


@dataclasses.dataclass(slots=True)
class Export:
    """The files of the teacher and of the retrained subnets."""

    max_miou_drop: float = 1.0  # points of mIoU that a file may lose; an error beyond

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        checks.at_least("export.max_miou_drop", self.max_miou_drop, 0.0)


@dataclasses.dataclass(slots=True)
class Run:
    """How a run behaves; nothing here changes its results, but `per_dispatch` rounds otherwise."""

    save_every: int = 500  # training steps between checkpoints
    log_every: int = 50  # training steps between lines of metrics
    per_dispatch: int = 1  # training steps in one program, for accelerators; slower on CPUs
    eval_batch: int = 1  # pictures at once when a network is measured

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        for name in self.__slots__:
            checks.at_least(f"run.{name}", getattr(self, name), 1)
        if self.save_every % self.per_dispatch:  # each length is a program of its own
            rule = f"must divide run.save_every={self.save_every}"
            raise InputError(f"run.per_dispatch={self.per_dispatch}: {rule}")


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
    kernels: Kernels = dataclasses.field(default_factory=Kernels)
    quantize: Quantize = dataclasses.field(default_factory=Quantize)
    hardware: Hardware = dataclasses.field(default_factory=Hardware)
    search: Search = dataclasses.field(default_factory=Search)
    retrain: Retrain = dataclasses.field(default_factory=Retrain)
    export: Export = dataclasses.field(default_factory=Export)
    run: Run = dataclasses.field(default_factory=Run)

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        checks.same_types("", self, Config())
        checks.at_least("seed", self.seed, 0)
        for field in dataclasses.fields(self):
            if check := getattr(getattr(self, field.name), "check", None):
                check()
        checks.one_of("kernels.compile", self.kernels.compile, ("auto", "never"))
        if self.data.train_images:
            self.check_images(self.data.train_images)

    def check_images(self, known: int) -> None:
        """Raises InputError for a setting that asks for more training pictures."""
        for name, wanted in (
            ("lut.calibration_images", self.lut.calibration_images),
            ("lut.images", self.lut.images),
            ("quantize.images", self.quantize.images),
        ):
            if wanted > known:
                raise InputError(f"{name}={wanted}: there are {known} training pictures")
