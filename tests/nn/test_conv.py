import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax.nn.conv import LINEAR, RELU, ConvBnAct
from qnas_jax.nn.fake_quant import FakeQuant

LAYERS = {
    "dense": ConvBnAct(4, kernel=3, stride=2),
    "depthwise": ConvBnAct(3, kernel=5, dilation=2, depthwise=True),
    "pointwise": ConvBnAct(5, bounds=LINEAR),
    "strided": ConvBnAct(2, stride=2, bounds=RELU),
    "padded": ConvBnAct(4, kernel=3, stride=2, padding=(-0.25, 0.0, 0.5)),
}
RANGE = (-0.4, 1.1)  # of the quantized output; narrower than what the layers give
every_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _apply(layer, variables, x, train=False, mutable=()):
    return layer.apply(variables, x, train, mutable=list(mutable))


def _input(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 1, (2, 5, 7, 3)), jnp.float32)


def _variables(layer, w_bits=8, a_bits=8):
    rng = np.random.default_rng(7)
    inputs = 1 if layer.depthwise else 3
    kernel = rng.normal(0, 0.5, (layer.kernel, layer.kernel, inputs, layer.features))
    n = layer.features
    variables = {
        "params": {
            "kernel": kernel,
            "norm": {"scale": rng.uniform(0.5, 1.5, n), "bias": rng.normal(0.5, 0.5, n)},
        },
        "batch_stats": {"norm": {"mean": rng.normal(0, 1, n), "var": rng.uniform(0.5, 2, n)}},
        "quant": {"out": {"range": np.array(RANGE)}},
    }
    variables = jax.tree.map(jnp.float32, variables)
    variables["quant"]["w_bits"] = jnp.int32(w_bits)
    variables["quant"]["out"]["a_bits"] = jnp.int32(a_bits)
    return variables


def _float(variables):
    return {name: value for name, value in variables.items() if name != "quant"}


# The layer's parts in float64 NumPy, to be put together by hand in each test.


def _convolve(layer, x, w):
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    pad, (_, height, width, _) = layer.dilation * (layer.kernel // 2), x.shape
    rows, columns = -(-height // layer.stride), -(-width // layer.stride)
    around = np.array(layer.padding or (0, 0, 0))
    x = np.pad(x - around, ((0, 0), (pad, pad), (pad, pad), (0, 0))) + around
    u = np.zeros((len(x), rows, columns, layer.features))
    for i, j in np.ndindex(layer.kernel, layer.kernel):
        top, left = i * layer.dilation, j * layer.dilation
        shifted = x[:, top : top + height : layer.stride, left : left + width : layer.stride]
        u += shifted * w[i, j, 0] if layer.depthwise else shifted @ w[i, j]
    return u


def _normalize(layer, variables, u, mean, var):
    norm = jax.tree.map(np.float64, variables["params"]["norm"])
    y = norm["scale"] * (u - mean) / np.sqrt(var + 1e-5) + norm["bias"]
    return np.clip(y, *layer.bounds)


def _stored(variables):
    norm = jax.tree.map(np.float64, variables["batch_stats"]["norm"])
    return norm["mean"], norm["var"]


def _batch(u):
    return u.mean((0, 1, 2)), u.var((0, 1, 2))


def _weights_on_grid(w, bits):
    w = np.asarray(w, np.float64)
    scale = np.abs(w).max((0, 1, 2)) / (2 ** (bits - 1) - 1)
    return scale * np.rint(w / scale)


def _on_grid(y, range_, bits):
    alpha, beta = min(range_[0], 0), max(range_[1], 0)
    scale = (beta - alpha) / (2**bits - 1)
    zero_point = np.rint(-alpha / scale)
    codes = np.clip(np.rint(y / scale) + zero_point, 0, 2**bits - 1)
    return scale * (codes - zero_point)


# float32 against float64; one wrong code would be a step of 0.007 or more.
_assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


@every_layer
def test_without_a_policy_the_layer_is_float(layer):
    variables, x = _variables(layer), _input()
    found, state = _apply(layer, _float(variables), x)
    u = _convolve(layer, x, variables["params"]["kernel"])
    _assert_close(found, _normalize(layer, variables, u, *_stored(variables)))
    assert not state


def test_where_quantized_the_padding_is_the_nearest_byte():
    exact, nearest = ((p / 128 - 1, 0.0, 0.25) for p in (123.675, 124))
    layers = [ConvBnAct(4, kernel=3, padding=padding) for padding in (exact, nearest)]
    variables, x = _variables(layers[0]), _input()
    quantized = [np.asarray(_apply(layer, variables, x)[0]) for layer in layers]
    np.testing.assert_array_equal(*quantized)
    floats = [np.asarray(_apply(layer, _float(variables), x)[0]) for layer in layers]
    assert np.any(floats[0] != floats[1])


@every_layer
@pytest.mark.parametrize(("w_bits", "a_bits"), [(8, 8), (4, 6), (2, 3)])
def test_with_a_policy_weights_and_output_are_on_their_grids(layer, w_bits, a_bits):
    variables, x = _variables(layer, w_bits, a_bits), _input()
    found, state = _apply(layer, variables, x)
    u = _convolve(layer, x, _weights_on_grid(variables["params"]["kernel"], w_bits))
    y = _normalize(layer, variables, u, *_stored(variables))
    assert y.max() > RANGE[1]
    _assert_close(found, _on_grid(y, RANGE, a_bits))
    assert not state


@every_layer
def test_calibration_grows_the_range_and_reads_what_it_has_grown_to(layer):
    variables = _variables(layer, w_bits=4, a_bits=5)
    range_ = RANGE
    for seed in range(3):
        x = _input(seed)
        found, state = _apply(layer, variables, x, False, ("quant",))
        u = _convolve(layer, x, _weights_on_grid(variables["params"]["kernel"], 4))
        y = _normalize(layer, variables, u, *_stored(variables))
        range_ = min(range_[0], y.min()), max(range_[1], y.max())
        _assert_close(state["quant"]["out"]["range"], range_)
        _assert_close(found, _on_grid(y, range_, 5))
        assert int(state["quant"]["w_bits"]) == 4 and int(state["quant"]["out"]["a_bits"]) == 5
        variables = {**variables, **state}
    assert range_[1] > RANGE[1]


@every_layer
def test_training_normalizes_by_the_batch_and_follows_it_slowly(layer):
    variables, x = _variables(layer), _input()
    found, state = _apply(layer, _float(variables), x, True, ("batch_stats",))
    u = _convolve(layer, x, variables["params"]["kernel"])
    _assert_close(found, _normalize(layer, variables, u, *_batch(u)))
    for name, old, new in zip(("mean", "var"), _stored(variables), _batch(u), strict=True):
        _assert_close(state["batch_stats"]["norm"][name], 0.9 * old + 0.1 * new)


@every_layer
def test_training_without_statistics_to_keep_gives_the_same(layer):
    variables, x = _variables(layer), _input()
    kept, _ = _apply(layer, _float(variables), x, True, ("batch_stats",))
    found, state = _apply(layer, {"params": variables["params"]}, x, True)
    np.testing.assert_array_equal(found, kept)
    assert not state


@every_layer
def test_recalibration_takes_the_batchs_own_statistics(layer):
    variables, x = _variables(layer), _input()
    found, state = _apply(layer, _float(variables), x, False, ("batch_stats",))
    u = _convolve(layer, x, variables["params"]["kernel"])
    _assert_close(found, _normalize(layer, variables, u, *_batch(u)))
    for name, new in zip(("mean", "var"), _batch(u), strict=True):
        _assert_close(state["batch_stats"]["norm"][name], new)


@every_layer
def test_statistics_and_ranges_can_be_found_in_one_pass(layer):
    variables, x = _variables(layer, w_bits=4, a_bits=6), _input()
    variables["quant"]["out"]["range"] = jnp.zeros(2)
    found, state = _apply(layer, variables, x, False, ("batch_stats", "quant"))
    u = _convolve(layer, x, _weights_on_grid(variables["params"]["kernel"], 4))
    mean, var = _batch(u)
    _assert_close(state["batch_stats"]["norm"]["mean"], mean)
    _assert_close(state["batch_stats"]["norm"]["var"], var)
    y = _normalize(layer, variables, u, mean, var)
    range_ = min(0, y.min()), max(0, y.max())
    _assert_close(state["quant"]["out"]["range"], range_)
    _assert_close(found, _on_grid(y, range_, 6))


def test_a_layer_without_norm_adds_a_bias():
    layer = ConvBnAct(5, bounds=RELU, norm=False)
    params = {"kernel": _variables(layer)["params"]["kernel"], "bias": jnp.arange(5.0) - 2}
    quant = {"w_bits": jnp.int32(3), "out": {"a_bits": jnp.int32(4), "range": jnp.array(RANGE)}}
    x = _input()

    def expected(w):
        return np.maximum(_convolve(layer, x, w) + np.arange(5) - 2, 0)

    _assert_close(_apply(layer, {"params": params}, x)[0], expected(params["kernel"]))
    y = expected(_weights_on_grid(params["kernel"], 3))
    quantized, _ = _apply(layer, {"params": params, "quant": quant}, x)
    _assert_close(quantized, _on_grid(y, RANGE, 4))


def test_a_layer_whose_reader_has_the_grid_quantizes_its_weights_alone():
    layer = ConvBnAct(5, grid=False)
    variables, x = _variables(layer), _input()
    variables["quant"] = {"w_bits": jnp.int32(3)}
    found, state = _apply(layer, variables, x, False, ("quant",))
    u = _convolve(layer, x, _weights_on_grid(variables["params"]["kernel"], 3))
    _assert_close(found, _normalize(layer, variables, u, *_stored(variables)))
    assert list(state["quant"]) == ["w_bits"]


@every_layer
def test_fresh_variables_are_float_statistics_at_rest_and_an_empty_range_at_8_bits(layer):
    fresh = jax.jit(layer.init)(jax.random.key(0), _input())
    shapes = jax.tree.map(jnp.shape, _variables(layer))
    assert jax.tree.map(jnp.shape, fresh) == shapes
    norm = {name: np.full(layer.features, value) for name, value in (("mean", 0), ("var", 1))}
    jax.tree.map(np.testing.assert_array_equal, fresh["batch_stats"]["norm"], norm)
    quant = {"w_bits": 8, "out": {"a_bits": 8, "range": np.zeros(2)}}
    jax.tree.map(np.testing.assert_array_equal, fresh["quant"], quant)


def test_a_range_that_is_known_beforehand_is_not_calibrated():
    grid, x = FakeQuant(fixed=(-1.0, 1.0)), 3 * _input()
    fresh = grid.init(jax.random.key(0), x)
    np.testing.assert_array_equal(fresh["quant"]["range"], [-1, 1])
    found, state = grid.apply(fresh, x, mutable=["quant"])
    np.testing.assert_array_equal(state["quant"]["range"], [-1, 1])
    # 255 steps over [-1, 1], zero on the grid: 127 or 128 of them above zero.
    assert 254 / 255 - 1e-6 < found.max() < 256 / 255 + 1e-6


def test_vmap_over_policies_is_a_loop_and_one_trace_serves_them_all():
    layer, x = LAYERS["dense"], _input()
    policies = [(w, a) for w in (2, 4, 8) for a in (2, 5, 8)]
    variables = _variables(layer)
    traces = []

    @jax.jit
    def run(quant):
        traces.append(quant)
        return layer.apply({**variables, "quant": quant}, x)

    quants = [_variables(layer, *policy)["quant"] for policy in policies]
    alone = [run(quant) for quant in quants]
    assert len(traces) == 1
    together = jax.vmap(run)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *quants))
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-6, atol=1e-6)
    for (w_bits, a_bits), found in zip(policies, alone, strict=True):
        u = _convolve(layer, x, _weights_on_grid(variables["params"]["kernel"], w_bits))
        y = _normalize(layer, variables, u, *_stored(variables))
        _assert_close(found, _on_grid(y, RANGE, a_bits))


def test_jit_changes_nothing():
    layer, x = LAYERS["depthwise"], _input()
    variables = _variables(layer, 4, 6)
    jitted, _ = _apply(layer, variables, x)
    np.testing.assert_allclose(layer.apply(variables, x), jitted, rtol=1e-6, atol=1e-6)


def test_the_gradient_goes_straight_through_both_grids():
    layer, x = ConvBnAct(5, bounds=LINEAR, norm=False), _input()
    kernel = _variables(layer)["params"]["kernel"]
    quant = {"w_bits": jnp.int32(3), "out": {"a_bits": jnp.int32(4), "range": jnp.array(RANGE)}}
    g = np.random.default_rng(1).normal(0, 1, (2, 5, 7, 5))

    @functools.partial(jax.grad, argnums=(0, 1))
    def gradients(kernel, x):
        variables = {"params": {"kernel": kernel, "bias": jnp.zeros(5)}, "quant": quant}
        return jnp.sum(layer.apply(variables, x) * jnp.float32(g))

    g_kernel, g_x = gradients(kernel, x)
    w = _weights_on_grid(kernel, 3)
    u = _convolve(layer, x, w)
    scale = (RANGE[1] - RANGE[0]) / 15
    code = np.rint(u / scale) + np.rint(-RANGE[0] / scale)
    passed = g * ((code >= 0) & (code <= 15))
    assert 0.2 < np.mean(passed == g) < 0.9  # some are clipped, most are not
    _assert_close(g_kernel[0, 0], np.einsum("nhwi,nhwo->io", np.float64(x), passed))
    _assert_close(g_x, passed @ w[0, 0].T)
