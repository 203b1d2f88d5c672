"""Images and labels: a data set is a sequence of (uint8[h, w, 3], uint8[h, w] or int32[]).

streets = data.Streets(seed=0, split="train", height=64, width=128, count=100)
images, labels = data.stacked(streets, range(8))
"""

from qnas_jax.data.batching import Batch, Cached, Dataset, stacked
from qnas_jax.data.cityscapes import Cityscapes
from qnas_jax.data.digits import Digits
from qnas_jax.data.folders import Folders
from qnas_jax.data.labels import NAMES, PALETTE
from qnas_jax.data.streets import Objects, Streets

__all__ = [
    "NAMES",
    "PALETTE",
    "Batch",
    "Cached",
    "Cityscapes",
    "Dataset",
    "Digits",
    "Folders",
    "Objects",
    "Streets",
    "stacked",
]
