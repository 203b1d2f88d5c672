"""Optimizers against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qnas_jax.train import optimizers


def _sgd(weights, gradients, lr, steps, power, momentum, weight_decay):
    """Weights after each step, in float64; the velocity is torch's, without dampening."""
    velocity, curve = np.zeros_like(weights), []
    for step, gradient in enumerate(gradients):
        rate = lr * (1 - step / steps) ** power
        velocity = momentum * velocity + gradient + weight_decay * weights
        weights = weights - rate * velocity
        curve.append(weights)
    return np.array(curve)


def _optimized(params, gradients, optimizer):
    """Parameters after each step."""
    state, curve = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        curve.append(params)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *curve)


SETTINGS = [
    {"lr": 0.1, "steps": 7, "power": 0.9, "momentum": 0.9, "weight_decay": 0.05},
    {"lr": 0.3, "steps": 5, "power": 2.0, "momentum": 0.0, "weight_decay": 0.0},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=["decayed", "plain"])
def test_sgd_equals_momentum_decay_and_schedule_by_hand(setting):
    rng = np.random.default_rng(0)
    weights, gradients = rng.normal(0, 1, (3, 4)), rng.normal(0, 1, (setting["steps"], 3, 4))
    expected = _sgd(weights, gradients, **setting)
    found = _optimized(
        {"kernel": jnp.float32(weights)},
        [{"kernel": jnp.float32(g)} for g in gradients],
        optimizers.sgd(**setting),
    )["kernel"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_sgd_decays_only_kernels():
    params = {"kernel": jnp.ones(2), "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)}}
    gradients = [jax.tree.map(jnp.zeros_like, params)] * 3
    found = _optimized(params, gradients, optimizers.sgd(0.1, 10, 0.9, 0.9, 0.05))
    assert np.all(found["kernel"] < 1)
    np.testing.assert_array_equal(found["norm"]["scale"], 1)
    np.testing.assert_array_equal(found["norm"]["bias"], 1)


@pytest.mark.parametrize(("clip", "share"), [(10.0, 1.0), (2.5, 0.5), (0.0, 1.0)])
def test_gradients_are_clipped_by_their_global_norm(clip, share):
    """A gradient of norm 5 over two leaves; one step without momentum and decay."""
    params = {"a": {"kernel": jnp.zeros(1)}, "b": {"bias": jnp.zeros(1)}}
    gradients = {"a": {"kernel": jnp.array([3.0])}, "b": {"bias": jnp.array([-4.0])}}
    optimizer = optimizers.sgd(0.1, 10, 1.0, 0.0, 0.0, clip)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    found = jnp.concatenate(jax.tree.leaves(updates))
    np.testing.assert_allclose(found, -0.1 * share * np.array([3.0, -4.0]), rtol=1e-6)


def _adamw(weights, gradients, lr, steps, warmup, weight_decay):
    """Weights after each step, in float64; betas 0.9 and 0.999, epsilon 1e-8."""
    mean, square, curve = np.zeros_like(weights), np.zeros_like(weights), []
    for step, gradient in enumerate(gradients):
        if step < warmup:
            rate = lr * (step + 1) / (warmup + 1)
        else:
            rate = lr * (1 + np.cos(np.pi * (step - warmup) / (steps - warmup))) / 2
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        unbiased = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.999 ** (step + 1))
        change = unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
        weights = weights - rate * (change + weight_decay * weights)
        curve.append(weights)
    return np.array(curve)


@pytest.mark.parametrize("warmup", [0, 3])
def test_adamw_equals_its_formulas_and_decays_kernels_alone(warmup):
    rng = np.random.default_rng(0)
    setting = {"lr": 0.1, "steps": 8, "warmup": warmup}
    weights, gradients = rng.normal(0, 1, (3, 4)), rng.normal(0, 1, (8, 3, 4))
    found = _optimized(
        {"kernel": jnp.float32(weights), "bias": jnp.float32(weights)},
        [{"kernel": jnp.float32(g), "bias": jnp.float32(g)} for g in gradients],
        optimizers.adamw(**setting, weight_decay=0.05),
    )
    for name, decay in (("kernel", 0.05), ("bias", 0.0)):
        expected = _adamw(weights, gradients, **setting, weight_decay=decay)
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5)
