"""Street scenes rendered by rules: Cityscapes' classes without Cityscapes' download."""

from qnas_jax.data.streets.dataset import Streets
from qnas_jax.data.streets.scene import render

__all__ = ["Streets", "render"]
