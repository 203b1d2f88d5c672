"""The loss, the prediction and the score of classification."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax.tasks import classification

NAMES = tuple("abcdefgh")


@pytest.fixture(scope="module")
def drawn():
    """Logits and labels of 300 images."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (300, 1, 1, len(NAMES))).astype(np.float32)
    return logits, rng.integers(0, len(NAMES), 300).astype(np.int32)


def test_the_loss_is_the_mean_cross_entropy(drawn):
    logits, labels = drawn
    x = logits[:, 0, 0].astype(np.float64)
    exact = np.log(np.exp(x).sum(-1)) - x[np.arange(len(x)), labels]
    found, gradient = jax.jit(jax.value_and_grad(classification.loss))(logits, labels)
    np.testing.assert_allclose(found, exact.mean(), rtol=1e-6)
    softmax = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    expected = (softmax - np.eye(len(NAMES))[labels]) / len(x)
    np.testing.assert_allclose(gradient[:, 0, 0], expected, rtol=1e-4, atol=1e-7)


def test_classes_are_ranked_and_the_first_of_equal_ones_wins(drawn):
    logits, _ = drawn
    found = np.asarray(classification.predict(jnp.asarray(logits), (9, 9)))
    np.testing.assert_array_equal(
        found, np.argsort(-logits[:, 0, 0], axis=-1, kind="stable")[:, :5]
    )
    equal = jnp.zeros((1, 1, 1, 7))
    np.testing.assert_array_equal(classification.predict(equal, (9, 9)), [range(5)])
    np.testing.assert_array_equal(classification.predict(equal[..., :5], (9, 9)), [[0]])


def test_scores_of_batches_add_up_to_those_of_all(drawn):
    logits, labels = drawn
    task = classification.task(NAMES)
    ranks = np.asarray(task.predict(jnp.asarray(logits), (9, 9)))
    parts = [task.tally(labels[i : i + 7], ranks[i : i + 7]) for i in range(0, 300, 7)]
    found = task.score(sum(parts))
    best = logits[:, 0, 0].argmax(-1)
    above = (logits[:, 0, 0] > logits[np.arange(300), 0, 0, labels][:, None]).sum(-1)
    assert found["top1"] == pytest.approx(100 * np.mean(best == labels), abs=1e-4)
    assert found["top5"] == pytest.approx(100 * np.mean(above < 5), abs=1e-4)
    for c, value in enumerate(found["class_accuracy"]):
        assert value == pytest.approx(100 * np.mean(best[labels == c] == c), abs=0.01)


def test_a_class_without_images_has_no_accuracy():
    task = classification.task(tuple("ab"))
    found = task.score(task.tally(np.array([1, 1], np.int32), np.array([[1], [0]])))
    assert found == {"top1": 50.0, "class_accuracy": [None, 50.0]}
