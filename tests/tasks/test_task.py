"""Predictions and scores of a data set, for any task."""

import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax import metrics
from qnas_jax.errors import InputError
from qnas_jax.tasks import classification, segmentation
from qnas_jax.tasks.task import SAMPLES, evaluate, full_batches, ranked


class Images:
    """Five images that encode their index."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return np.full((2, 3, 3), 10 + index, np.uint8), np.full((2, 3), index, np.uint8)


@pytest.mark.parametrize("batch", [1, 2, 5, 8])
def test_the_last_batch_is_padded_and_the_padding_dropped(batch):
    found = list(full_batches(Images(), batch))
    assert {images.shape for images, _ in found} == {(batch, 2, 3, 3)}
    assert [len(labels) for _, labels in found] == [
        min(batch, 5 - start) for start in range(0, 5, batch)
    ]
    classes = [ranked(jnp.asarray(images[..., 0] + 1), labels) for images, labels in found]
    labels = np.concatenate([labels for _, labels in found])
    np.testing.assert_array_equal(labels[:, 0, 0], range(5))
    np.testing.assert_array_equal(np.concatenate(classes), labels[..., None] + 11)


class Labelled(Images):
    """The same images with one label each."""

    def __getitem__(self, index):
        return super().__getitem__(index)[0], np.array(index, np.int32)


@pytest.mark.parametrize("batch", [2, 5])
def test_classification_is_scored_for_each_source(batch):
    sources = {
        "right": lambda images: images[:, 0, 0, 0] - 10,
        "zero": lambda images: np.zeros((len(images), 1, 1), np.uint8),  # as files give them
        "third": lambda images: (images[:, 0, 0, :1] + np.arange(8, 3, -1)) % 10 % 5,
    }
    task = classification.task(tuple("abcde"))
    found, samples = evaluate(sources, Labelled(), batch, task)
    assert found["top1_right"] == 100.0 and found["top1_zero"] == 20.0
    assert found["class_accuracy_zero"] == [100.0, 0, 0, 0, 0]
    np.testing.assert_array_equal(samples["right"], range(SAMPLES))
    assert "top5_right" not in found and found["top5_third"] == 100.0


def test_segmentation_is_scored_for_each_source():
    sources = {
        "right": lambda x: x[..., 0] - 10,
        "other": lambda x: np.zeros(x.shape[:3], np.uint8),
    }
    found, samples = evaluate(sources, Images(), 2, segmentation.task(tuple("abcde")))
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
        evaluate({"any": lambda x: x[..., 0]}, Unlabelled(), 2, segmentation.task(tuple("abcde")))
