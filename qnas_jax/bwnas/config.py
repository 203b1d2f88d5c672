"""The settings of a search by block-wise distillation.

A config file has `get_config()`, which returns a `Config`. The defaults are those of Lu et al.,
2023 (https://arxiv.org/abs/2401.12350); `configs/cityscapes.py` lists those that the paper leaves
open.
"""

import dataclasses

from qnas_jax.errors import InputError
from qnas_jax.run import checks
from qnas_jax.run.config import (
    BLOCKS,
    Data,
    Export,
    Hardware,
    Kernels,
    Network,
    Run,
    Space,
    Teacher,
    Train,
    check_images,
    check_sections,
)
from qnas_jax.run.config import OBJECTS_TEACHER as OBJECTS_TEACHER  # for config files
from qnas_jax.run.config import STREETS_TEACHER as STREETS_TEACHER
from qnas_jax.run.recipes import FEATURES, RANGES, Quantize, Retrain
from qnas_jax.space import COSTS

# Of the bitwidths 2, 3, 4, 6 and 8 the pairs whose weights and activations differ by one step at
# most, for config files.
NEAR_PAIRS = (
    (2, 2), (2, 3), (3, 2), (3, 3), (3, 4), (4, 3), (4, 4),
    (4, 6), (6, 4), (6, 6), (6, 8), (8, 6), (8, 8),
)  # fmt: skip


@dataclasses.dataclass(slots=True)
class Supernet:
    """How the blocks of the supernet are distilled from those of the teacher."""

    steps: int = 13_334
    batch: int = 8
    optimizer: str = "sgd"  # or "adamw", see Train
    lr: tuple[float, ...] = (0.002, 0.005, 0.005, 0.005, 0.005, 0.002)  # of each block, the highest
    momentum: float = 0.9
    power: float = 0.9
    warmup: int = 0
    weight_decay: float = 1e-4
    clip: float = 0.0  # largest norm of a block's gradients; 0: they are not clipped
    init: str = "random"  # or "teacher": ops begin as the teacher's layers, see nn/inherit.py
    sampling: str = "fair"  # or "uniform"; a fair step trains every op once
    parts: int = 1  # of a batch, each normalized alone; the most devices that share a block
    compute: str = "float32"  # or "bfloat16", for accelerators; parameters stay float32

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        checks.training("supernet", self)
        checks.at_least("supernet.parts", self.parts, 1)
        if self.batch % self.parts:
            rule = f"must divide supernet.batch={self.batch}"
            raise InputError(f"supernet.parts={self.parts}: {rule}")
        checks.length("supernet.lr", self.lr, BLOCKS)
        checks.all_of("supernet.lr", self.lr, lambda lr: lr > 0, "above 0")
        checks.one_of("supernet.init", self.init, ("random", "teacher"))
        checks.one_of("supernet.sampling", self.sampling, ("fair", "uniform"))


@dataclasses.dataclass(slots=True)
class Lut:
    """How every path is scored, on the first images of the training split."""

    calibration_images: int = 32  # for batch-norm statistics and ranges; run at once
    images: int = 500  # for the NSR
    images_per_pass: int = 8
    nodes_per_pass: int = 0  # prefixes that are run at once; 0: as many as memory allows
    ranges: str = "min_max"  # or "percentile", "mse", "kl"
    a_ranges_per: str = "tensor"  # or "channel", which no integer hardware runs; to compare
    compute: str = "auto"  # the faster one; "int8"; or "float32": within 1e-6 of the module
    time_budget_s: float = 0.0  # no chunk of images is begun after it; 0: no limit

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        least = {"calibration_images": 1, "images": 1, "images_per_pass": 1}
        for name, value in {**least, "nodes_per_pass": 0, "time_budget_s": 0}.items():
            checks.at_least(f"lut.{name}", getattr(self, name), value)
        checks.one_of("lut.ranges", self.ranges, RANGES)
        checks.one_of("lut.a_ranges_per", self.a_ranges_per, ("tensor", "channel"))
        checks.one_of("lut.compute", self.compute, ("auto", "int8", "float32"))
        if self.compute == "int8" and self.a_ranges_per == "channel":
            raise InputError("lut.compute='int8': must be float32 with lut.a_ranges_per=channel")


@dataclasses.dataclass(slots=True)
class Search:
    """Which costs are minimized together with the NSR, and their bounds."""

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
class Audit:
    """What `--audit` trains and scores: which score ranks networks as training does."""

    # Trained in all: the largest and the smallest, a quarter from the front, a quarter of nearly
    # equal size, all others at random; these have the bitwidths of `space` in turn, mixed ones too.
    subnets: int = 32
    seeds: int = 2  # of the training of each
    band: float = 0.03  # share by which the sizes of a pair may differ, to count as equal
    steps: int = 240  # of each one-shot supernet, one path in each
    batch: int = 32
    lr: float = 5e-4
    images: int = 200  # the last ones of the training split; the one-shot supernets do not see them
    norm_images: int = 32  # of which batch norms and ranges are taken for each subnet
    # `qnas fronts`: networks of the front of each search that are trained, and candidates that
    # each one-shot search scores.
    front: int = 4
    candidates: int = 300

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        checks.at_least("audit.subnets", self.subnets, 8)
        checks.within("audit.band", self.band, 0.0, 1.0)
        for name in ("seeds", "steps", "batch", "images", "norm_images", "front", "candidates"):
            checks.at_least(f"audit.{name}", getattr(self, name), 1)
        checks.above_zero("audit.lr", self.lr)


@dataclasses.dataclass(slots=True)
class Config:
    """All settings of a run."""

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
    audit: Audit = dataclasses.field(default_factory=Audit)
    export: Export = dataclasses.field(default_factory=Export)
    run: Run = dataclasses.field(default_factory=Run)

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        check_sections(self)
        wide = self.network.teacher_width not in (0, self.network.width)
        if self.supernet.init == "teacher" and wide:
            rule = "must be 'random' with network.teacher_width: the layers differ in width"
            raise InputError(f"supernet.init='teacher': {rule}")
        if wide and FEATURES in dict(self.retrain.distill):
            rule = "no 'features' with network.teacher_width: they differ in width"
            raise InputError(f"retrain.distill={self.retrain.distill}: {rule}")
        if 0 < self.retrain.steps <= self.train.warmup:
            rule = f"must be above train.warmup={self.train.warmup}, or 0"
            raise InputError(f"retrain.steps={self.retrain.steps}: {rule}")
        if self.retrain.qat_norm_steps % self.run.per_dispatch:
            rule = f"must be a multiple of run.per_dispatch={self.run.per_dispatch}"
            raise InputError(f"retrain.qat_norm_steps={self.retrain.qat_norm_steps}: {rule}")
        if self.data.train_images:
            self.check_images(self.data.train_images)

    def check_images(self, known: int) -> None:
        """Raises InputError for a setting that asks for more than the known training images."""
        check_images(
            known,
            {
                "lut.calibration_images": self.lut.calibration_images,
                "lut.images": self.lut.images,
                "quantize.images": self.quantize.images,
            },
        )
