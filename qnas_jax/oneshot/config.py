"""The settings of a one-shot search.

The published settings of SPOS and FairNAS are for ImageNet; `configs/spos_objects.py` has those of
a laptop.
"""

import dataclasses
from typing import ClassVar

from qnas_jax.errors import InputError
from qnas_jax.run import checks
from qnas_jax.run.config import OBJECTS_TEACHER as OBJECTS_TEACHER  # for config files
from qnas_jax.run.config import (
    Data,
    Export,
    Hardware,
    Network,
    Run,
    Space,
    Teacher,
    Train,
    check_images,
    check_sections,
)
from qnas_jax.run.recipes import RANGES, Quantize, Retrain
from qnas_jax.space import COSTS


@dataclasses.dataclass(slots=True)
class Oneshot:
    """How the supernet is trained, and how subnets are found in it."""

    sampling: str = "uniform"  # of paths, as SPOS; or "fair", as FairNAS
    steps: int = 2000  # one path each; a fair supernet changes once for as many steps as ops
    batch: int = 32
    optimizer: str = "adamw"  # or "sgd", see Train
    lr: float = 5e-4
    momentum: float = 0.9
    power: float = 1.0
    warmup: int = 20
    weight_decay: float = 1e-2
    clip: float = 1.0
    compute: str = "float32"  # or "bfloat16", for accelerators; parameters stay float32
    init: str = "teacher"  # ops begin as the teacher's layers, or "random"
    images: int = 250  # the last ones of the training split, on which subnets are scored
    images_per_pass: int = 250
    norm_images: int = 64  # of which batch norms and ranges are taken for each subnet
    ranges: str = "min_max"  # of activations: or "percentile", "mse", "kl"
    cost: str = "size_bytes"  # that is bounded, or minimized too
    search: str = "evolution"  # SPOS's, for each budget; "nsga2": a front of accuracy and cost
    budgets: tuple[float, ...] = (0.75,)  # shares of the teacher's cost at 8 bits
    at_once: int = 1  # subnets that a program scores, one after another; on CPUs 1 is as fast
    candidates: int = 500  # scored in all, for each budget or for the front

    # What the trained weights depend on.
    TRAINING: ClassVar[tuple[str, ...]] = (
        "sampling", "steps", "batch", "optimizer", "lr", "momentum", "power", "warmup",
        "weight_decay", "clip", "compute", "init",
    )  # fmt: skip

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        checks.training("oneshot", self)
        checks.one_of("oneshot.sampling", self.sampling, ("uniform", "fair"))
        checks.one_of("oneshot.init", self.init, ("teacher", "random"))
        checks.above_zero("oneshot.lr", self.lr)
        for name in ("images", "images_per_pass", "norm_images", "at_once", "candidates"):
            checks.at_least(f"oneshot.{name}", getattr(self, name), 1)
        checks.one_of("oneshot.ranges", self.ranges, RANGES)
        checks.one_of("oneshot.cost", self.cost, tuple(COSTS))
        checks.one_of("oneshot.search", self.search, ("evolution", "nsga2"))
        checks.all_of("oneshot.budgets", self.budgets, lambda b: 0 < b <= 1, "above 0, at most 1")
        checks.distinct("oneshot.budgets", tuple(f"{b:g}" for b in self.budgets))


@dataclasses.dataclass(slots=True)
class Config:
    """All settings of a run."""

    seed: int = 0  # of all training and sampling
    data: Data = dataclasses.field(default_factory=Data)
    network: Network = dataclasses.field(default_factory=Network)
    train: Train = dataclasses.field(default_factory=Train)
    teacher: Teacher = dataclasses.field(default_factory=Teacher)
    space: Space = dataclasses.field(default_factory=Space)
    quantize: Quantize = dataclasses.field(default_factory=Quantize)
    hardware: Hardware = dataclasses.field(default_factory=Hardware)
    oneshot: Oneshot = dataclasses.field(default_factory=Oneshot)
    retrain: Retrain = dataclasses.field(default_factory=Retrain)
    export: Export = dataclasses.field(default_factory=Export)
    run: Run = dataclasses.field(default_factory=Run)

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        check_sections(self)
        if self.network.teacher_width not in (0, self.network.width):
            rule = "must be 0: the stem and the head of a one-shot supernet are the teacher's"
            raise InputError(f"network.teacher_width={self.network.teacher_width}: {rule}")
        for name in ("qat_steps", "teacher"):
            if value := getattr(self.retrain, name):
                rule = "is for QA-BWNAS; a one-shot search trains its subnets in float alone"
                raise InputError(f"retrain.{name}={value}: {rule}")
        if 0 < self.retrain.steps <= self.train.warmup:
            rule = f"must be above train.warmup={self.train.warmup}, or 0"
            raise InputError(f"retrain.steps={self.retrain.steps}: {rule}")
        if self.data.train_images:
            self.check_images(self.data.train_images)

    def check_images(self, known: int) -> None:
        """Raises InputError for a setting that asks for more than the known training images."""
        kept = self.oneshot.images
        check_images(
            known,
            {
                "oneshot.images + oneshot.norm_images": kept + self.oneshot.norm_images,
                "oneshot.images + oneshot.batch": kept + self.oneshot.batch,
                "oneshot.images + quantize.images": kept + self.quantize.images,
            },
        )
