"""The settings of a search for bitwidths by reinforcement learning.

A config file has `get_config()`, which returns a `Config`. The defaults are those of Wang et al.,
2019 (https://arxiv.org/abs/1811.08886) and of its code.
"""

import dataclasses

from qnas_jax.errors import InputError
from qnas_jax.run import checks
from qnas_jax.run.config import OBJECTS_TEACHER as OBJECTS_TEACHER  # for config files
from qnas_jax.run.config import STREETS_TEACHER as STREETS_TEACHER
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
from qnas_jax.run.recipes import Quantize
from qnas_jax.space import COSTS, LEAST_BITS, MOST_BITS

METHODS = ("haq", "uniform", "random", "greedy", "exact", "evolution")
ALL_METHODS = (*METHODS, "lut")  # the last one needs a network of blocks


@dataclasses.dataclass(slots=True)
class Haq:
    """What is searched, and how policies are scored."""

    # "mobilenet_v2" with the head of the task, "mobilenet_v1" (classification), the text of a
    # subnet of QA-BWNAS, or "FILE.py:FUNCTION", a function that takes the number of classes and
    # gives your own Flax network.
    network: str = "mobilenet_v2"
    quantizer: str = "linear"  # or "kmeans": shared weights, activations in float
    ranges: str = "kl"  # linear: how clipping ranges are chosen; or "mse" or "min_max"
    targets: tuple[str, ...] = ("bismo_edge:latency_ms",)  # DEVICE:COST, see docs/haq.md
    table: str = ""  # a CSV file of measured layers, the device "table"; see docs/haq.md
    budgets: tuple[float, ...] = (4.0,)  # the cost of so many bits everywhere; below 1: a share
    methods: tuple[str, ...] = METHODS
    seeds: int = 3  # runs of each method that draws random numbers
    episodes: int = 600  # and policies that "random" and "evolution" try
    per_round: int = 16  # greedy: bits taken off after each round of scores
    # Where bits are taken off: from the "last" layer on, as published; from the least sensitive
    # on ("sensitivity"); or where there are most bits ("highest").
    order: str = "last"
    reward_images: int = 10_000  # the last ones of the training split, kept out of training
    images_per_pass: int = 250
    policies_per_pass: int = 1  # scored by one program; more for accelerators
    norm_images: int = 0  # of which batch norms take new statistics before a policy is scored
    steps: int = 0  # of training before that
    lr: float = 1e-3
    final_steps: int = 0  # of training before a chosen policy is tested
    final_lr: float = 1e-2
    exports: bool = True  # the best policy of each target and budget as files

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        checks.one_of("haq.quantizer", self.quantizer, ("linear", "kmeans"))
        checks.one_of("haq.ranges", self.ranges, ("kl", "mse", "min_max"))
        rule = f"must be DEVICE:COST with a COST among {tuple(COSTS)}"
        checks.all_of("haq.targets", self.targets, lambda t: t.partition(":")[2] in COSTS, rule)
        checks.distinct("haq.targets", self.targets)
        low = 1 if self.quantizer == "kmeans" else LEAST_BITS
        rule = f"must be bitwidths {low} to {MOST_BITS}, or shares of the cost at 8 bits, below 1"
        checks.all_of(
            "haq.budgets",
            self.budgets,
            lambda b: 0 < b < 1 or (b == int(b) and low <= b <= MOST_BITS),
            rule,
        )
        checks.distinct("haq.budgets", self.budgets)
        checks.all_of(
            "haq.methods", self.methods, lambda m: m in ALL_METHODS, f"among {ALL_METHODS}"
        )
        checks.distinct("haq.methods", self.methods)
        checks.one_of("haq.order", self.order, ("last", "sensitivity", "highest"))
        for name in ("seeds", "episodes", "per_round", "reward_images", "images_per_pass",
                     "policies_per_pass"):  # fmt: skip
            checks.at_least(f"haq.{name}", getattr(self, name), 1)
        for name in ("norm_images", "steps", "final_steps"):
            checks.at_least(f"haq.{name}", getattr(self, name), 0)
        for name in ("lr", "final_lr"):
            checks.above_zero(f"haq.{name}", getattr(self, name))
        if self.quantizer == "kmeans":
            for target in self.targets:
                if target != "none:size_bytes":
                    rule = "haq.quantizer=kmeans changes the size alone: must be none:size_bytes"
                    raise InputError(f"haq.targets={self.targets}: {rule}")


@dataclasses.dataclass(slots=True)
class Agent:
    """The agent, see `haq/ddpg.py`."""

    hidden: tuple[int, int] = (300, 300)
    actor_lr: float = 1e-4
    critic_lr: float = 1e-3
    gamma: float = 1.0
    tau: float = 0.01
    sigma: float = 0.5
    decay: float = 0.99
    warmup: int = 20
    batch: int = 64
    memory: int = 64
    baseline: float = 0.5

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        checks.length("agent.hidden", self.hidden, 2)
        checks.all_of("agent.hidden", self.hidden, lambda n: n >= 1, "at least 1")
        for name in ("actor_lr", "critic_lr", "sigma"):
            checks.above_zero(f"agent.{name}", getattr(self, name))
        for name in ("gamma", "tau", "decay", "baseline"):
            checks.within(f"agent.{name}", getattr(self, name), 0.0, 1.0)
        for name in ("warmup", "batch", "memory"):
            checks.at_least(f"agent.{name}", getattr(self, name), 1)


@dataclasses.dataclass(slots=True)
class Config:
    """All settings of a run."""

    seed: int = 0  # of all training and sampling
    data: Data = dataclasses.field(default_factory=Data)
    network: Network = dataclasses.field(default_factory=Network)
    train: Train = dataclasses.field(default_factory=Train)
    teacher: Teacher = dataclasses.field(default_factory=Teacher)
    space: Space = dataclasses.field(default_factory=Space)  # of a subnet of QA-BWNAS
    quantize: Quantize = dataclasses.field(default_factory=Quantize)
    hardware: Hardware = dataclasses.field(default_factory=Hardware)
    haq: Haq = dataclasses.field(default_factory=Haq)
    agent: Agent = dataclasses.field(default_factory=Agent)
    export: Export = dataclasses.field(default_factory=Export)
    run: Run = dataclasses.field(default_factory=Run)

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        check_sections(self)
        if self.data.train_images:
            self.check_images(self.data.train_images)

    def check_images(self, known: int) -> None:
        """Raises InputError for a setting that asks for more than the known training images."""
        check_images(
            known,
            {
                "haq.reward_images": self.haq.reward_images,
                "haq.reward_images + quantize.images": self.haq.reward_images
                + self.quantize.images,
                "haq.reward_images + haq.norm_images": self.haq.reward_images
                + self.haq.norm_images,
            },
        )
