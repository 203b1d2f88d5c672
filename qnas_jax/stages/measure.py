"""What a whole network is worth: mIoU in float and quantized, and its size."""

from typing import Any

import numpy as np
from jaxtyping import PyTree

from qnas_jax import metrics
from qnas_jax.data.batching import Dataset
from qnas_jax.errors import InputError
from qnas_jax.hardware import size
from qnas_jax.nn import policy
from qnas_jax.nn.deeplab import DeepLabV3
from qnas_jax.nn.trace import Shape, convs, trace
from qnas_jax.train import supervised
from qnas_jax.train.supervised import ClassMaps

SAMPLES = 4  # validation pictures whose predictions are kept


def accuracy(
    sources: dict[str, ClassMaps], data: Dataset, batch: int, classes: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """mIoU and IoU by class over a data set, in percent, of several computations.

    Args:
      sources: Functions images -> class maps, by their names.
      data: The validation split.
      batch: Pictures at once.
      classes: Number of classes.

    Returns:
      The figures by name, and the class maps of the first few pictures.
    """
    found, samples = {}, {}
    for name, source in sources.items():
        matrix, kept = np.zeros((classes, classes), np.int64), []
        for labels, maps in supervised.predictions(source, data, batch):
            matrix += metrics.confusion(labels, maps, classes)
            kept += list(maps[: SAMPLES - len(kept)])
        if not matrix.any():
            raise InputError("no pixel of the validation split has a label that counts")
        found[f"miou_{name}"] = round(metrics.mean_iou(matrix), 4)
        found[f"class_iou_{name}"] = [
            None if np.isnan(iou) else round(100 * float(iou), 2)
            for iou in metrics.class_iou(matrix)
        ]
        samples[name] = np.stack(kept)
    return found, samples


def sizes(model: DeepLabV3, quant: PyTree, image_shape: Shape) -> dict[str, int]:
    """Bytes of the whole network and of its encoder, quantized and in float; MACs.

    Args:
      model: The network.
      quant: Its policy.
      image_shape: Height, width and channels of a picture.
    """
    traced, bits = trace(model, image_shape), policy.w_bits(quant)
    found = traced.convs
    by_conv = {conv.name: int(size.conv_bytes(conv, bits[conv.name])) for conv in found}
    encoder = sum(by_conv[conv.name] for conv in convs(traced.encoder))
    return {
        "size_bytes": sum(by_conv.values()),
        "encoder_size_bytes": encoder,
        "float_size_bytes": size.float_bytes(found),
        "macs": sum(conv.macs for conv in found),
    }
