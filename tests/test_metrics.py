import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax import metrics


def random_maps(seed, shape=(3, 5, 7, 4)):
    rng = np.random.default_rng(seed)
    scale = 10.0 ** np.arange(-1, 3)  # channels with very different scales
    target = rng.normal(scale, scale, shape)
    return (target + rng.normal(0, 0.3 * scale, shape)).astype(np.float32), target.astype(
        np.float32
    )


def nsr_by_hand(output, target):
    total = 0.0
    for c in range(target.shape[-1]):
        y, yhat = target[..., c].astype(np.float64), output[..., c].astype(np.float64)
        variance = ((y - y.sum() / y.size) ** 2).sum() / y.size
        total += ((y - yhat) ** 2).sum() / y.size / (variance + metrics.NSR_EPSILON)
    return total / target.shape[-1]


def nsr(output, target):
    target = jnp.asarray(target)
    return metrics.nsr(jnp.asarray(output), target, metrics.channel_variance(target))


@pytest.mark.parametrize("seed", range(3))
def test_nsr_equals_its_formula_in_float64(seed):
    output, target = random_maps(seed)
    assert float(nsr(output, target)) == pytest.approx(nsr_by_hand(output, target), rel=1e-5)


def test_variance_is_over_images_and_pixels():
    _, target = random_maps(0)
    expected = target.astype(np.float64).reshape(-1, target.shape[-1]).var(0)
    np.testing.assert_allclose(metrics.channel_variance(jnp.asarray(target)), expected, rtol=1e-5)


def test_nsr_of_many_paths_equals_the_nsr_of_each():
    pairs = [random_maps(seed) for seed in range(3)]
    target = pairs[0][1]
    outputs = np.stack([output for output, _ in pairs])
    found = nsr(outputs, target)
    assert found.shape == (3,)
    np.testing.assert_allclose(found, [nsr_by_hand(o, target) for o in outputs], rtol=1e-5)


def test_nsr_is_zero_for_the_target_and_one_for_its_mean():
    _, target = random_maps(1)
    mean = np.broadcast_to(target.mean((0, 1, 2)), target.shape)
    assert float(nsr(target, target)) == 0
    assert float(nsr(mean, target)) == pytest.approx(1, rel=1e-3)


def test_nsr_does_not_depend_on_channel_scale_or_image_order():
    output, target = random_maps(2)
    scale = np.float32([4, 0.5, 2, 8])
    expected = float(nsr(output, target))
    assert float(nsr(output * scale, target * scale)) == pytest.approx(expected, rel=1e-3)
    assert float(nsr(output[::-1], target[::-1])) == pytest.approx(expected, rel=1e-5)


def test_nsr_of_a_constant_channel_stays_finite():
    target = np.zeros((2, 3, 3, 2), np.float32)
    target[..., 1] = np.arange(18).reshape(2, 3, 3)
    output = target + np.float32(1e-3)
    # The constant channel contributes 1e-6 / (0 + 1e-6) = 1; the mean is over two channels.
    assert float(nsr(output, target)) == pytest.approx(0.5, rel=1e-3)


def confusion_by_hand(label, prediction, classes):
    matrix = [[0] * classes for _ in range(classes)]
    for true, predicted in zip(label.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        if true != 255:
            matrix[true][predicted] += 1
    return matrix


def iou_by_hand(label, prediction, classes):
    result = []
    for c in range(classes):
        inside = [
            (true == c, predicted == c)
            for true, predicted in zip(label.ravel(), prediction.ravel(), strict=True)
            if true != 255
        ]
        union = sum(a or b for a, b in inside)
        result.append(sum(a and b for a, b in inside) / union if union else float("nan"))
    return result


@pytest.mark.parametrize("seed", range(4))
def test_confusion_and_iou_equal_counted_pixels(seed):
    rng, classes = np.random.default_rng(seed), 19
    present = rng.permutation(classes)[:6].astype(np.uint8)  # most classes never occur
    label = rng.choice(np.append(present, np.uint8(255)), (2, 9, 11))
    prediction = rng.choice(present, label.shape)
    matrix = metrics.confusion(label, prediction, classes)
    assert matrix.tolist() == confusion_by_hand(label, prediction, classes)
    by_hand = iou_by_hand(label, prediction, classes)
    np.testing.assert_allclose(metrics.class_iou(matrix), by_hand)
    assert np.isnan(by_hand).sum() == 13
    expected = 100 * sum(v for v in by_hand if v == v) / 6
    assert metrics.mean_iou(matrix) == pytest.approx(expected)


def test_a_class_that_is_only_predicted_has_iou_zero():
    label, prediction = np.array([0, 0, 255]), np.array([0, 1, 1])
    matrix = metrics.confusion(label, prediction, 3)
    np.testing.assert_array_equal(metrics.class_iou(matrix), [0.5, 0.0, np.nan])
    assert metrics.mean_iou(matrix) == 25


def test_kendall_tau_counts_pairs_in_the_same_order_with_and_without_ties():
    rng = np.random.default_rng(0)
    tied = 0
    for case in range(60):
        count = int(rng.integers(3, 30))
        a = rng.integers(0, 4, count) if case % 2 else rng.normal(size=count)
        b = rng.integers(0, 3, count) if case % 3 else a + rng.normal(size=count)
        if len(set(a.tolist())) == 1 or len(set(b.tolist())) == 1:
            continue
        tied += len(set(a.tolist())) < count
        orders = [np.sign(np.subtract.outer(scores, scores)) for scores in (a, b)]
        untied = [np.abs(order).sum() for order in orders]
        expected = (orders[0] * orders[1]).sum() / np.sqrt(untied[0] * untied[1])
        assert metrics.kendall_tau(a, b) == pytest.approx(expected, abs=1e-12)
    assert tied > 10


def test_kendall_tau_of_one_order_its_reverse_and_none():
    a = np.array([0.1, 0.5, 0.7, 3.0])
    assert metrics.kendall_tau(a, np.exp(a)) == 1
    assert metrics.kendall_tau(a, -a) == -1
    assert np.isnan(metrics.kendall_tau(a, np.ones(4)))
    assert np.isnan(metrics.kendall_tau(a[:1], a[:1])), "and says nothing of it"
