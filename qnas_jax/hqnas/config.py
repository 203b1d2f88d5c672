"""The settings of a search for a network and its bitwidths by gradient.

A config file has `get_config()`, which returns a `Config`. Chen et al., 2022
(https://arxiv.org/abs/2210.08485) have published an abstract; the defaults are this project's.
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
    check_corruptions,
    check_images,
    check_sections,
)
from qnas_jax.run.recipes import Quantize
from qnas_jax.space import COSTS, LEAST_BITS, MOST_BITS

RIVALS = ("sequential", "bwnas")


@dataclasses.dataclass(slots=True)
class Hqnas:
    """What is searched, and how."""

    bits: tuple[int, ...] = (2, 3, 4, 6, 8)  # of weights and of activations, by layer
    cost: str = "latency_ms"  # that the budgets bound, on hardware.target
    budgets: tuple[float, ...] = (0.5,)  # shares of the teacher's cost at 8 bits
    # Further costs with their shares, which every search keeps: (("size_bytes", 0.4),).
    limits: tuple[tuple[str, float], ...] = ()
    seeds: int = 1
    warmup_steps: int = 1000  # of the shared weights, under random choices
    steps: int = 1000  # of weights and logits together, for each budget
    batch: int = 64
    lr: float = 1e-3  # Adam, of the weights; falls to 0 as a cosine in each of the two parts
    logit_lr: float = 2e-2  # Adam, of the logits
    bilevel: bool = False  # logits learn on other images than weights: the second half of a batch
    relaxation: str = "sampled"  # one choice in a step; "mixture": all, by their probabilities
    temperature: tuple[float, float] = (2.0, 0.5)  # of samples, first and last
    first_bits: float = 2.0  # logit of the most bits when the search begins, 0 being the fewest
    transform: bool = False  # smaller kernels are learned matrices of the largest kernel's middle
    damping: float = 0.0  # of weights that oscillate between two values, see quant/nested.py
    rate: float = 0.05  # how fast the controller follows
    most_weight: float = 20.0  # of the cost in the loss
    choice_images: int = 64  # of score_images, on which each choice of a layer is scored alone
    samples: int = 16  # subnets that are drawn in the end, and scored
    neighbours: int = 64  # scored by a local search around the best of them; 0: none
    near_images: int = 128  # of score_images, on which the losses of subnets are compared
    score_images: int = 250  # the last ones of the training split, kept out of training
    images_per_pass: int = 250
    norm_images: int = 64  # of which batch norms take statistics before a choice is scored
    final_steps: int = 1000  # of the training of the found network
    final_lr: float = 2e-3
    exports: bool = True
    # Other ways to choose: "sequential" (ops first, then bits) and "bwnas" (the front of a finished
    # run). All networks, those of HQNAS too, are then trained from the weights after the warm-up.
    rivals: tuple[str, ...] = ()
    fronts: tuple[str, ...] = ()  # for bwnas: `search/front.csv` for all seeds, or one for each

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        rule = f"bitwidths lie in [{LEAST_BITS}, {MOST_BITS}]"
        checks.all_of("hqnas.bits", self.bits, lambda b: LEAST_BITS <= b <= MOST_BITS, rule)
        checks.distinct("hqnas.bits", self.bits)
        checks.one_of("hqnas.cost", self.cost, tuple(COSTS))
        checks.all_of("hqnas.budgets", self.budgets, lambda b: 0 < b <= 1, "above 0, at most 1")
        checks.distinct("hqnas.budgets", tuple(f"{b:g}" for b in self.budgets))  # name folders
        for name in ("seeds", "warmup_steps", "steps", "samples", "score_images",
                     "choice_images", "near_images", "images_per_pass", "norm_images"):  # fmt: skip
            checks.at_least(f"hqnas.{name}", getattr(self, name), 1)
        checks.at_least("hqnas.batch", self.batch, 2 if self.bilevel else 1)
        for name in ("neighbours", "final_steps"):
            checks.at_least(f"hqnas.{name}", getattr(self, name), 0)
        for name in ("lr", "logit_lr", "rate", "most_weight", "final_lr"):
            checks.above_zero(f"hqnas.{name}", getattr(self, name))
        checks.one_of("hqnas.relaxation", self.relaxation, ("sampled", "mixture"))
        checks.length("hqnas.temperature", self.temperature, 2)
        checks.all_of("hqnas.temperature", self.temperature, lambda t: t > 0, "above 0")
        if self.temperature[0] < self.temperature[1]:
            raise InputError(f"hqnas.temperature={self.temperature}: must not rise")
        checks.at_least("hqnas.damping", self.damping, 0)
        checks.within("hqnas.first_bits", self.first_bits, 0.0, 10.0)
        checks.bounds("hqnas.limits", self.limits, tuple(COSTS))
        for name, share in self.limits:
            if name == self.cost or share > 1:
                rule = f"must be a cost other than hqnas.cost={self.cost!r}, and at most 1"
                raise InputError(f"hqnas.limits: {name!r} with {share:g}: {rule}")
        for rival in self.rivals:
            checks.one_of("hqnas.rivals", rival, RIVALS)
        checks.distinct("hqnas.rivals", self.rivals)
        if self.damping and self.relaxation == "mixture":
            raise InputError("hqnas.damping: must be 0 with hqnas.relaxation='mixture'")
        if self.fronts and "bwnas" not in self.rivals:
            raise InputError("hqnas.fronts: are read for 'bwnas', which is not in hqnas.rivals")
        if not all(isinstance(file, str) for file in self.fronts):
            raise InputError(f"hqnas.fronts={self.fronts}: must be names of files")
        if "bwnas" in self.rivals and len(self.fronts) not in (1, self.seeds):
            rule = f"must be one file, or one for each of {self.seeds} seeds"
            raise InputError(f"hqnas.fronts: {len(self.fronts)} files: {rule}")


@dataclasses.dataclass(slots=True)
class Adapt:
    """What `--adapt=NAME` makes of a finished search of the same folder."""

    of: float = 0.0  # the budget whose search is adapted; 0: the first of hqnas.budgets
    seed: int = -1  # of that search; -1: the first
    target: str = ""  # the other device; "": the same
    cost: str = ""  # the cost that is bounded; "": the same
    budget: float = 0.0  # a share of the teacher's cost at 8 bits on that device; 0: the same
    # A preference instead of a budget and all limits: weights of costs in the loss, each for the
    # cost of the teacher: (("latency_ms", 0.2), ("energy_mj", 0.1)).
    prices: tuple[tuple[str, float], ...] = ()
    # Shifted images, see data.corruptions; the shared weights learn on them for `steps`, and so do
    # the logits, which begin in the order that they have.
    corruptions: tuple[tuple[str, float], ...] = ()
    # Shifted classes, in place of data.frequencies; with or without corruptions, and learned as
    # they are. A class that had 0 there is a new one.
    frequencies: tuple[tuple[str, float], ...] = ()
    steps: int = 60
    neighbours: int = 0  # as hqnas.neighbours: better, and it takes longer than the rest
    final_steps: int = -1  # of the found network; -1: hqnas.final_steps
    # The name of an adaptation whose shared weights are the beginning; "": those of the search.
    # Nothing else that an adaptation learned flows back.
    after: str = ""

    @property
    def shifted(self) -> bool:
        """Whether the images are others."""
        return bool(self.corruptions or self.frequencies)

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        for name in ("of", "budget"):
            checks.within(f"adapt.{name}", getattr(self, name), 0.0, 1.0)
        checks.at_least("adapt.seed", self.seed, -1)
        if self.cost:
            checks.one_of("adapt.cost", self.cost, tuple(COSTS))
        if self.prices and (self.budget or self.cost):
            raise InputError("adapt.prices: a preference has no adapt.budget and no adapt.cost")
        if self.prices and self.shifted:
            rule = "not together; adapt to the images, then with adapt.after to the preference"
            raise InputError(f"adapt.prices and shifted images: {rule}")
        checks.bounds("adapt.prices", self.prices, tuple(COSTS))
        check_corruptions("adapt.corruptions", self.corruptions)
        checks.bounds("adapt.frequencies", self.frequencies, (), zero=True)
        checks.at_least("adapt.steps", self.steps, 1)
        checks.at_least("adapt.neighbours", self.neighbours, 0)
        checks.at_least("adapt.final_steps", self.final_steps, -1)


@dataclasses.dataclass(slots=True)
class Config:
    """All settings of a run."""

    seed: int = 0  # of all training and sampling
    data: Data = dataclasses.field(default_factory=Data)
    network: Network = dataclasses.field(default_factory=Network)
    train: Train = dataclasses.field(default_factory=Train)
    teacher: Teacher = dataclasses.field(default_factory=Teacher)
    space: Space = dataclasses.field(default_factory=Space)  # of ops; bits are hqnas.bits
    quantize: Quantize = dataclasses.field(default_factory=Quantize)
    hardware: Hardware = dataclasses.field(default_factory=Hardware)
    hqnas: Hqnas = dataclasses.field(default_factory=Hqnas)
    adapt: Adapt = dataclasses.field(default_factory=Adapt)
    export: Export = dataclasses.field(default_factory=Export)
    run: Run = dataclasses.field(default_factory=Run)

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        check_sections(self)
        if self.adapt.of and self.adapt.of not in self.hqnas.budgets:
            rule = f"must be among hqnas.budgets={tuple(self.hqnas.budgets)}, or 0"
            raise InputError(f"adapt.of={self.adapt.of:g}: {rule}")
        if self.data.train_images:
            self.check_images(self.data.train_images)

    def check_images(self, known: int) -> None:
        """Raises InputError for a setting that asks for more than the known training images."""
        kept = self.hqnas.score_images
        check_images(
            known,
            {
                "hqnas.score_images + hqnas.norm_images": kept + self.hqnas.norm_images,
                "hqnas.score_images + quantize.images": kept + self.quantize.images,
                "hqnas.score_images + hqnas.batch": kept + self.hqnas.batch,
            },
        )
