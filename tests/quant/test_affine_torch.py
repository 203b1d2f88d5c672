"""Fake quantization compared with recorded results of torch, and with torch if installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax.quant import affine

# Recorded from torch 2.13.0. Activations:
#   x = torch.tensor([-3.0, -0.77, -0.12, 0.0, 0.04, 0.33, 1.1, 2.9])
#   torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 2**bits - 1)
# Weights:
#   w = torch.tensor([[0.9, -0.03], [-0.41, 0.02], [0.13, 0.007]]); q = 2**(bits - 1) - 1
#   zeros = torch.zeros(2, dtype=torch.int32)
#   torch.fake_quantize_per_channel_affine(w, w.abs().amax(0) / q, zeros, 1, -q, q)
# Gradient of x at 4 bits: backward() of the sum.
TORCH_X = [-3.0, -0.77, -0.12, 0.0, 0.04, 0.33, 1.1, 2.9]
TORCH_ACTIVATIONS = {
    (2, 1.2, 1): [
        *(-1.2000000476837158, -1.2000000476837158, 0.0, 0.0),
        *(0.0, 0.0, 1.2000000476837158, 2.4000000953674316),
    ],
    (4, 0.24, 5): [
        *(-1.1999999284744263, -0.7199999690055847, 0.0, 0.0),
        *(0.0, 0.23999999463558197, 1.1999999284744263, 2.3999998569488525),
    ],
    (8, 0.014, 93): [
        *(-1.3020000457763672, -0.7700000405311584, -0.12600000202655792, 0.0),
        *(0.04200000315904617, 0.3360000252723694, 1.1060000658035278, 2.2680001258850098),
    ],
}
TORCH_GRADIENT = [0, 1, 1, 1, 1, 1, 1, 0]
TORCH_W = [[0.9, -0.03], [-0.41, 0.02], [0.13, 0.007]]
TORCH_WEIGHTS = {
    2: [[0.9, -0.03], [0.0, 0.03], [0.0, 0.0]],
    4: [
        [0.8999999761581421, -0.029999999329447746],
        [-0.38571426272392273, 0.02142857015132904],
        [0.12857142090797424, 0.008571428246796131],
    ],
    8: [
        [0.8999999761581421, -0.029999999329447746],
        [-0.4110236167907715, 0.020078739151358604],
        [0.12755905091762543, 0.007086614146828651],
    ],
}


@pytest.mark.parametrize("grid", TORCH_ACTIVATIONS, ids=str)
def test_activations_equal_recorded_torch_results(grid):
    bits, scale, zero_point = grid
    x, q_max = jnp.array(TORCH_X), 2.0**bits - 1
    found = affine.snap(x, jnp.float32(scale), jnp.float32(zero_point), 0.0, q_max)
    np.testing.assert_array_equal(found, np.float32(TORCH_ACTIVATIONS[grid]))


def test_the_gradient_equals_the_recorded_torch_result():
    gradient = jax.grad(lambda x: jnp.sum(affine.snap(x, 0.24, 5.0, 0.0, 15.0)))
    np.testing.assert_array_equal(gradient(jnp.array(TORCH_X)), TORCH_GRADIENT)


@pytest.mark.parametrize("bits", TORCH_WEIGHTS)
def test_weights_equal_recorded_torch_results(bits):
    found = affine.fake_quant_weight(jnp.array(TORCH_W), jnp.int32(bits))
    np.testing.assert_array_equal(found, np.float32(TORCH_WEIGHTS[bits]))


def _assert_equal(bits, ours, theirs):
    """Checks bitwise equality; both round `x * (1 / scale)` with ties to even."""
    largest = np.abs(np.asarray(ours) - theirs).max()
    print(f"{bits} bits: largest difference over {theirs.size} values: {largest:g}")
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.bench
@pytest.mark.parametrize("range_", [(-1.3, 2.1), (0.0, 6.0), (-0.02, 0.3)], ids=str)
@pytest.mark.parametrize("bits", range(2, 9))
def test_activations_against_torch(bits, range_):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(bits).normal(0, max(range_) / 2, 300_000).astype(np.float32)
    scale, zero_point, q_max = jax.jit(affine.asymmetric_grid)(jnp.array(range_), jnp.int32(bits))
    x_torch = torch.tensor(x, requires_grad=True)
    theirs = torch.fake_quantize_per_tensor_affine(
        x_torch, float(scale), int(zero_point), 0, int(q_max)
    )
    theirs.sum().backward()
    ours, pull = jax.vjp(
        lambda x: affine.fake_quant(x, jnp.array(range_), jnp.int32(bits)), jnp.asarray(x)
    )
    _assert_equal(bits, ours, theirs.detach().numpy())
    (gradient,) = pull(jnp.ones(x.shape))
    np.testing.assert_array_equal(gradient, x_torch.grad.numpy())


@pytest.mark.bench
@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_against_torch(bits):
    torch = pytest.importorskip("torch")
    w = np.random.default_rng(bits).normal(0, 1, (3, 3, 1000, 100)).astype(np.float32)
    scale, q_max = jax.jit(affine.symmetric_grid)(jnp.max(jnp.abs(w), (0, 1, 2)), jnp.int32(bits))
    scale = torch.tensor(np.array(scale))  # a copy: torch needs a writable array
    zeros = torch.zeros(100, dtype=torch.int32)
    theirs = torch.fake_quantize_per_channel_affine(
        torch.tensor(w), scale, zeros, 3, -int(q_max), int(q_max)
    )
    ours = affine.fake_quant_weight(jnp.asarray(w), jnp.int32(bits))
    _assert_equal(bits, ours, theirs.numpy())
