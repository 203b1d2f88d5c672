"""The 19 evaluated classes of Cityscapes; all other labels are ignored.

The data set's files hold *label ids* (0..33). Networks are trained on *train ids* (0..18, or 255
for ignored).

References:
  Cordts et al., 2016, https://arxiv.org/abs/1604.01685, table 1.
"""

import numpy as np

from qnas_jax.metrics import IGNORE

# (name, label id, display colour), in the order of the train ids.
CLASSES = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
NAMES = tuple(name for name, _, _ in CLASSES)
LABEL_IDS = 34  # label ids are 0..33
STATIC = 4  # label id of the ignored class "static"

_TRAIN_ID_OF_LABEL_ID = np.full(256, IGNORE, np.uint8)
_LABEL_ID_OF_TRAIN_ID = np.full(256, STATIC, np.uint8)
PALETTE = np.zeros((256, 3), np.uint8)
for _train_id, (_, _label_id, _colour) in enumerate(CLASSES):
    _TRAIN_ID_OF_LABEL_ID[_label_id] = _train_id
    _LABEL_ID_OF_TRAIN_ID[_train_id] = _label_id
    PALETTE[_train_id] = _colour


def train_ids(label_ids: np.ndarray) -> np.ndarray:
    """Converts label ids to train ids.

    Raises:
      ValueError: An id lies outside 0..33.
    """
    if label_ids.size and label_ids.max() >= LABEL_IDS:
        hint = ""
        if set(np.unique(label_ids).tolist()) <= {*range(len(CLASSES)), IGNORE}:
            hint = "; all values of this file are train ids (0..18, 255)"
        raise ValueError(f"label id {label_ids.max()}: label ids lie in 0..33{hint}")
    return _TRAIN_ID_OF_LABEL_ID[label_ids]


def checked_train_ids(values: np.ndarray) -> np.ndarray:
    """Returns train ids as they are.

    Raises:
      ValueError: One of them is none.
    """
    wrong = values[(values >= len(CLASSES)) & (values != IGNORE)]
    if wrong.size:
        raise ValueError(f"train id {wrong[0]}: train ids lie in 0..18, or are 255 (ignored)")
    return values


def label_ids(train_ids: np.ndarray) -> np.ndarray:
    """Converts train ids to label ids; ignored pixels become `STATIC`."""
    return _LABEL_ID_OF_TRAIN_ID[train_ids]
