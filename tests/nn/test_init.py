import jax
import jax.numpy as jnp
import numpy as np

from qnas_jax.nn import init
from qnas_jax.nn.conv import ConvBnAct

PARAMS = {
    "dense": {"kernel": jnp.zeros((3, 3, 20, 50)), "norm": {"scale": jnp.full(50, 0.7)}},
    "depthwise": {"kernel": jnp.zeros((5, 5, 1, 400)), "bias": jnp.full(400, -0.2)},
    "pointwise": {"kernel": jnp.zeros((1, 1, 300, 30))},
}
FAN_IN = {"dense": 3 * 3 * 20, "depthwise": 5 * 5, "pointwise": 300}


def test_kernels_are_normal_with_variance_two_over_fan_in():
    drawn = init.draw_kernels(PARAMS, jax.random.key(0))
    for name, fan_in in FAN_IN.items():
        kernel = np.asarray(drawn[name]["kernel"], np.float64)
        assert kernel.shape == PARAMS[name]["kernel"].shape
        normal = kernel / np.sqrt(2 / fan_in)
        # 9,000 draws: four standard errors of mean, variance and kurtosis.
        error = 4 / np.sqrt(kernel.size)
        assert abs(normal.mean()) < error
        assert abs(normal.var() - 1) < error * np.sqrt(2)
        assert abs((normal**4).mean() - 3) < error * np.sqrt(96)


def test_what_is_no_kernel_stays_as_it_is():
    drawn = init.draw_kernels(PARAMS, jax.random.key(0))
    assert jax.tree.structure(drawn) == jax.tree.structure(PARAMS)
    np.testing.assert_array_equal(drawn["dense"]["norm"]["scale"], PARAMS["dense"]["norm"]["scale"])
    np.testing.assert_array_equal(drawn["depthwise"]["bias"], PARAMS["depthwise"]["bias"])


def test_kernels_share_no_numbers_and_the_key_decides_them_all():
    first, again, other = (init.draw_kernels(PARAMS, jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernels = [drawn[name]["kernel"] for drawn in (first, other) for name in PARAMS]
    numbers = np.stack([np.ravel(kernel)[:9000] for kernel in kernels])
    correlations = np.corrcoef(numbers) - np.eye(6)
    assert np.abs(correlations).max() < 5 / np.sqrt(9000)


def test_initialize_makes_all_collections_and_draws_the_kernel():
    layer, key = ConvBnAct(4, kernel=3), jax.random.key(3)
    variables = init.initialize(layer, key, (1, 5, 5, 2))
    assert set(variables) == {"params", "batch_stats", "quant"}
    kernel = init.draw_kernels({"kernel": jnp.zeros((3, 3, 2, 4))}, key)["kernel"]
    np.testing.assert_allclose(variables["params"]["kernel"], kernel, rtol=1e-6)
    np.testing.assert_array_equal(variables["params"]["norm"]["scale"], np.ones(4))
    assert np.all(kernel != 0)
