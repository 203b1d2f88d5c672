"""Scores of subnets with shared weights against the subnets' own networks."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import small_oneshot
from qnas_jax import metrics
from qnas_jax.data.batching import Batch
from qnas_jax.nn import composed, policy
from qnas_jax.nn.trace import trace
from qnas_jax.nn.units import pixels
from qnas_jax.stages import candidates
from qnas_jax.stages.candidates import Scores, Setting
from qnas_jax.tasks import classification
from qnas_jax.train import supervised
from small_oneshot import CLASSES, NETWORK, quickly_compiled, random_images, subnet_of

__all__ = ["quickly_compiled"]

SUBNETS = [subnet_of((1, 0, 1), (4, 6)), subnet_of((0, 1, 1)), subnet_of((1, 0, 0), (6, 4))]
NORM_IMAGES, IMAGES = random_images(6), np.asarray(random_images(30, seed=1))
LABELS = np.random.default_rng(0).integers(0, CLASSES, 30).astype(np.int32)
BATCHES = [Batch(IMAGES[s : s + 15], LABELS[s : s + 15]) for s in (0, 15)]


@pytest.fixture(scope="module")
def shared():
    params, teacher = small_oneshot.drawn()
    features = functools.partial(jax.jit(supervised.features(NETWORK.model)), teacher)
    task = classification.task(tuple("abc"))
    given = Setting(task, "min_max", np.asarray(NORM_IMAGES), BATCHES, features)
    weights = composed.Weights({**teacher, "params": params["rest"]}, params["blocks"])
    return params, weights, given


@pytest.fixture(scope="module")
def found(shared):
    _, weights, given = shared
    return candidates.scorer(NETWORK, weights, given)(SUBNETS)


def test_scores_are_those_of_the_own_network(shared, found):
    params, _, given = shared
    subnet = SUBNETS[0]
    model, own = small_oneshot.student(subnet), small_oneshot.own_variables(params, subnet)
    own["quant"] = policy.with_bits(own["quant"], trace(model, (10, 10, 3)), subnet)

    @jax.jit
    def run(own, calibration, images):
        _, changed = model.apply(own, calibration, mutable=["batch_stats", "quant"])
        read = {**own, **changed}
        return model.apply(read, images), model.apply(read, images, method="features")

    right, noise = 0, []
    for batch in BATCHES:
        logits, features = run(own, pixels(NORM_IMAGES), pixels(jnp.asarray(batch.images)))
        right += (np.argmax(np.asarray(logits), -1).ravel() == batch.labels).sum()
        wanted = given.features(batch.images)
        pairs = zip(features[1:], wanted[1:], strict=True)
        noise.append([metrics.nsr(y, x, metrics.channel_variance(x)) for y, x in pairs])
    assert found.accuracy[0] == pytest.approx(100 * right / 30, abs=1e-4)  # is rounded
    np.testing.assert_allclose(found.nsr[0], np.mean(noise, 0), rtol=1e-3)


@pytest.mark.slow
def test_several_at_once_are_scored_as_one_by_one(shared, found):
    _, weights, given = shared
    together = candidates.scorer(NETWORK, weights, given._replace(at_once=2))(SUBNETS)
    np.testing.assert_array_equal(together.accuracy, found.accuracy)
    np.testing.assert_allclose(together.nsr, found.nsr, rtol=1e-5)


class Counting:
    """Scores a subnet by its bits, and breaks off at one of them."""

    def __init__(self, breaks_at=None):
        self.asked, self.breaks_at = [], breaks_at

    def __call__(self, subnets):
        for subnet in subnets:
            if subnet == self.breaks_at:
                raise RuntimeError("broken off")
            self.asked.append(subnet)
        bits = [float(subnet[0][0].w_bits) for subnet in subnets]
        return Scores(np.array(bits), np.array([[b, b + 1] for b in bits]))


def test_each_subnet_is_scored_once(tmp_path):
    score = Counting()
    lookup = candidates.remembering(score, tmp_path / "scores.json", "subnets")
    first = lookup([SUBNETS[0], SUBNETS[1], SUBNETS[0]])
    assert score.asked == SUBNETS[:2]
    assert first.accuracy.tolist() == [4, 8, 4]
    assert first.nsr.tolist() == [[4, 5], [8, 9], [4, 5]]
    assert lookup(SUBNETS).accuracy.tolist() == [4, 8, 6]
    assert score.asked == SUBNETS


def test_what_was_scored_survives_a_stop(tmp_path):
    file, broken = tmp_path / "scores.json", Counting(breaks_at=SUBNETS[1])
    with pytest.raises(RuntimeError, match="broken off"):
        candidates.remembering(broken, file, "subnets")(SUBNETS)
    assert len(json.loads(file.read_text())) == 1
    resumed = Counting()
    found = candidates.remembering(resumed, file, "subnets")(SUBNETS)
    assert resumed.asked == SUBNETS[1:]
    assert found.accuracy.tolist() == [4, 8, 6]
