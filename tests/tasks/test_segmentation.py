"""The loss, the prediction and the score of segmentation."""

import jax
import jax.numpy as jnp
import numpy as np

from qnas_jax import metrics
from qnas_jax.nn.deeplab import resize_logits
from qnas_jax.tasks import segmentation

IGNORE = 255
_loss = jax.jit(jax.value_and_grad(segmentation.cross_entropy))


def _cross_entropy(logits, labels):
    """Mean over the pixels that are not ignored, in float64."""
    losses = []
    for pixel in np.ndindex(labels.shape):
        if labels[pixel] != IGNORE:
            x = logits[pixel].astype(np.float64)
            losses.append(np.log(np.exp(x).sum()) - x[labels[pixel]])
    return np.mean(losses)


def test_cross_entropy_is_the_mean_over_pixels_that_are_not_ignored():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (2, 3, 4, 5)).astype(np.float32)
    labels = rng.integers(0, 5, (2, 3, 4)).astype(np.uint8)
    labels[0, :2] = IGNORE
    labels[1, 2, 3] = IGNORE
    found, gradient = _loss(logits, labels)
    np.testing.assert_allclose(found, _cross_entropy(logits, labels), rtol=1e-6)
    exponentials = np.exp(logits.astype(np.float64))
    expected = exponentials / exponentials.sum(-1, keepdims=True) - np.eye(256)[labels][..., :5]
    expected = np.where((labels != IGNORE)[..., None], expected / np.sum(labels != IGNORE), 0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[[[1.0, 3.0], [1.0, 1.0], [9.0, 1.0]]]]))
    labels = jnp.array([[[1, 0, IGNORE]]], jnp.uint8)
    expected = (np.log(4 / 3) + np.log(2)) / 2
    np.testing.assert_allclose(_loss(logits, labels)[0], expected, rtol=1e-6)


def test_images_without_labels_give_no_gradient():
    labels = jnp.full((1, 2, 2), IGNORE, jnp.uint8)
    loss, gradient = _loss(jnp.ones((1, 2, 2, 3)), labels)
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)


def test_the_loss_is_at_the_resolution_of_the_labels():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(0, 3, (2, 3, 4, 5)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 5, (2, 6, 9)), jnp.uint8)
    expected = segmentation.cross_entropy(resize_logits(logits, 6, 9), labels)
    assert segmentation.task(tuple("abcde")).loss(logits, labels) == expected


def test_class_maps_are_the_argmax_of_the_resized_logits():
    logits = np.random.default_rng(0).normal(0, 3, (2, 3, 4, 5)).astype(np.float32)
    found = segmentation.predict(jnp.asarray(logits), (8, 12))
    assert found.shape == (2, 8, 12) and found.dtype == jnp.uint8
    resized = np.asarray(resize_logits(jnp.asarray(logits), 8, 12))
    np.testing.assert_array_equal(found, resized.argmax(-1))


def test_the_score_is_the_iou_in_percent():
    confusion = np.array([[3, 1, 0], [1, 5, 0], [0, 0, 0]])
    found = segmentation.score(confusion)
    assert found == {
        "miou": round(100 * (3 / 5 + 5 / 7) / 2, 4),
        "class_iou": [60.0, round(100 * 5 / 7, 2), None],
    }
    assert found["miou"] == round(metrics.mean_iou(confusion), 4)
