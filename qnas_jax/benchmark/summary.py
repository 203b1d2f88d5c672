"""What a benchmark's figures are like: how far networks differ, and how much of it is chance."""

import itertools

import numpy as np

from qnas_jax import metrics
from qnas_jax.benchmark.table import Benchmark


def seed_noise(right: np.ndarray, images: int) -> float:
    """Returns the standard deviation between trainings of one network, in percentage points.

    Args:
      right: Right answers [..., seeds], at least two seeds.
      images: Of so many.
    """
    return float(100 / images * np.sqrt(np.var(right, axis=-1, ddof=1).mean()))


def seed_tau(right: np.ndarray) -> float:
    """Returns Kendall's tau between trainings [n, seeds], the mean over all pairs of seeds.

    It is a ceiling: a search that ranks by one training cannot agree better with another one.
    """
    pairs = itertools.combinations(right.T, 2)
    return float(np.mean([metrics.kendall_tau(a, b) for a, b in pairs]))


def as_text(found: Benchmark) -> str:
    """Returns a few lines on the accuracies of a benchmark."""
    blocks, bits = len(found.space.blocks), len(found.bits)
    lines = [
        f"{len(found.right)} networks, {found.seeds} trainings each, {found.right.shape[2]} "
        f"policies, {found.images} images; the teacher has "
        f"{100 * found.teacher_right / found.images:.1f} %",
        f"{'':8}{'min':>7}{'median':>8}{'max':>7}{'spread':>8}{'noise':>7}{'tau':>7}",
        _line("float", found, found.float_right),
    ]
    for place, each in enumerate(found.bits):
        policy = np.ravel_multi_index((place,) * blocks, (bits,) * blocks)
        lines.append(_line(f"{each} bits", found, found.right[:, :, policy]))
    return "\n".join(
        [*lines, "spread: between networks, without noise; noise: between trainings; both s.d."]
    )


def _line(name: str, found: Benchmark, right: np.ndarray) -> str:
    mean = 100 * right.mean(-1) / found.images
    low, middle, high = np.quantile(mean, (0, 0.5, 1))
    text = f"{name:8}{low:7.1f}{middle:8.1f}{high:7.1f}"
    if min(right.shape) < 2:
        return text
    noise = seed_noise(right, found.images)
    # The mean of the trainings has its share of their noise.
    spread = np.sqrt(max(float(np.var(mean, ddof=1)) - noise**2 / right.shape[-1], 0.0))
    return f"{text}{spread:8.2f}{noise:7.2f}{seed_tau(right):7.2f}"
