"""The sections of a config that say how trained networks are quantized and trained again."""

import dataclasses

from qnas_jax.errors import InputError
from qnas_jax.run import checks

RANGES = ("min_max", "percentile", "mse", "kl")  # ways to choose a clipping range
LOGITS, FEATURES = "logits", "features"  # what a network learns from a teacher


@dataclasses.dataclass(slots=True)
class Quantize:
    """Post-training quantization of whole networks."""

    images: int = 32  # of the training split, for the ranges
    images_per_pass: int = 8
    ranges: str = "min_max"  # of activations, one of RANGES or "best" (see ptq/ranges.py)
    weight_ranges: str = "min_max"  # of each layer's weights: or "mse", "kl"
    equalize: bool = False  # channels of two convolutions in a row, see ptq/equalize.py
    rounding_steps: int = 0  # adaptive rounding of weights, steps of each layer; 0: to the nearest
    biases: bool = False  # the shifts of all means are taken off
    norms: bool = False  # batch norms take their statistics from the quantized network

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        for name in ("images", "images_per_pass"):
            checks.at_least(f"quantize.{name}", getattr(self, name), 1)
        checks.one_of("quantize.ranges", self.ranges, (*RANGES, "best"))
        checks.one_of("quantize.weight_ranges", self.weight_ranges, ("min_max", "mse", "kl"))
        checks.at_least("quantize.rounding_steps", self.rounding_steps, 0)
        if self.norms and self.biases:
            raise InputError("quantize.biases and quantize.norms: not together, norms do both")


@dataclasses.dataclass(slots=True)
class Retrain:
    """Which subnets of the front are trained to the end."""

    subnets: int = 5  # spread over the front by size
    steps: int = 0  # of each; 0: train.steps
    lr: float = 0.0  # the highest; 0: train.lr
    init: str = "supernet"  # weights to begin with, or "scratch"
    teacher: bool = False  # the teacher is trained on for as many steps, to compare with
    # What is learned besides the labels, with its weight in the loss: (("logits", 1.0),
    # ("features", 0.5)). Retrained networks learn it from the teacher, networks under their
    # bitwidths from themselves in float. See train/distillation.py.
    distill: tuple[tuple[str, float], ...] = ()
    # Quantization-aware training of the teacher and of each subnet, with learned scales; 0: none.
    qat_steps: int = 0
    qat_lr: float = 0.01  # the highest, of SGD
    qat_scale_rate: float = 0.01  # of it, for scales
    # Of them norms use the batch, and then what they have. 0: all of them; at the end norms take
    # their statistics from the images of `quantize`.
    qat_norm_steps: int = 0

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        checks.at_least("retrain.subnets", self.subnets, 1)
        checks.at_least("retrain.steps", self.steps, 0)
        checks.at_least("retrain.lr", self.lr, 0)
        checks.one_of("retrain.init", self.init, ("supernet", "scratch"))
        checks.bounds("retrain.distill", self.distill, (LOGITS, FEATURES))
        checks.at_least("retrain.qat_steps", self.qat_steps, 0)
        checks.above_zero("retrain.qat_lr", self.qat_lr)
        checks.within("retrain.qat_scale_rate", self.qat_scale_rate, 0.0, 1.0)
        checks.at_least("retrain.qat_norm_steps", self.qat_norm_steps, 0)
        if self.qat_norm_steps and self.qat_norm_steps >= self.qat_steps:
            rule = f"must lie in [0, retrain.qat_steps={self.qat_steps})"
            raise InputError(f"retrain.qat_norm_steps={self.qat_norm_steps}: {rule}")
