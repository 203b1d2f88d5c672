"""Predictions and scores of a data set, for any task."""

import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax import metrics
from qnas_jax.errors import InputError
from qnas_jax.tasks import segmentation
from qnas_jax.tasks.task import SAMPLES, Task, evaluate, predictions


class Images:
    """Five images that encode their index."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return np.full((2, 3, 3), 10 + index, np.uint8), np.full((2, 3), index, np.uint8)


@pytest.mark.parametrize("batch", [1, 2, 5, 8])
def test_predictions_pad_the_last_batch_and_drop_the_padding(batch):
    shapes = []

    def source(images):
        shapes.append(images.shape)
        return jnp.asarray(images[..., 0] + 1)

    found = list(predictions(source, Images(), batch))
    assert set(shapes) == {(batch, 2, 3, 3)}
    assert [len(labels) for labels, _ in found] == [
        min(batch, 5 - start) for start in range(0, 5, batch)
    ]
    labels, maps = (np.concatenate(parts) for parts in zip(*found, strict=True))
    assert labels.dtype == maps.dtype == np.uint8
    np.testing.assert_array_equal(labels[:, 0, 0], range(5))
    np.testing.assert_array_equal(maps, labels + 11)


def _right(confusion):
    return {"accuracy": 100 * float(np.diag(confusion).sum() / confusion.sum())}


# One class for each image.
CLASSIFICATION = Task(
    5, lambda logits, labels: logits, lambda logits, size: logits, _right, "accuracy", "accuracy"
)


class Labelled(Images):
    """The same images with one label each."""

    def __getitem__(self, index):
        return super().__getitem__(index)[0], np.array(index, np.uint8)


@pytest.mark.parametrize("batch", [2, 5])
def test_a_task_may_have_one_label_for_each_image(batch):
    sources = {
        "right": lambda images: images[:, 0, 0, 0] - 10,
        "zero": lambda images: np.zeros(len(images), np.uint8),
    }
    found, samples = evaluate(sources, Labelled(), batch, CLASSIFICATION)
    assert found == {"accuracy_right": 100.0, "accuracy_zero": 20.0}
    np.testing.assert_array_equal(samples["right"], range(SAMPLES))


def test_segmentation_is_scored_for_each_source():
    sources = {
        "right": lambda x: x[..., 0] - 10,
        "other": lambda x: np.zeros(x.shape[:3], np.uint8),
    }
    found, samples = evaluate(sources, Images(), 2, segmentation.task(5))
    assert found["miou_right"] == 100.0
    assert found["class_iou_right"] == [100.0] * 5
    assert found["miou_other"] == pytest.approx(20 / 5) and found["class_iou_other"][0] == 20.0
    assert list(samples) == ["right", "other"] and samples["other"].shape == (SAMPLES, 2, 3)


def test_a_data_set_without_labels_is_refused():
    class Unlabelled(Images):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image, np.full_like(label, metrics.IGNORE)

    with pytest.raises(InputError, match="no label of the validation split counts"):
        evaluate({"any": lambda x: x[..., 0]}, Unlabelled(), 2, segmentation.task(5))
