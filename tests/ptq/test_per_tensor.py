"""One scale for all weights of a layer: in fake quantization, in training, and in files."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import small_network
from qnas_jax.export import fold, interpret, runtimes
from qnas_jax.nn import policy
from qnas_jax.nn.trace import trace
from qnas_jax.nn.units import pixels
from qnas_jax.ptq import norms, per_tensor
from qnas_jax.train import learned, optimizers, supervised

CASE = small_network.make_case(((8, 8), (4, 8)))
TRACED = trace(CASE.model, small_network.SHAPE)
VARIABLES = jax.tree.map(jnp.asarray, dict(CASE.variables))
IMAGES = jnp.asarray(CASE.images)


def folded_kernel(conv):
    """A convolution's weights with its norm, in float64."""
    own = policy.at(CASE.variables["params"], conv)
    kernel = np.asarray(own["kernel"], np.float64)
    if "norm" not in own:
        return kernel
    var = policy.at(CASE.variables["batch_stats"], conv)["norm"]["var"]
    return kernel * own["norm"]["scale"] / np.sqrt(np.asarray(var, np.float64) + 1e-5)


@functools.cache
def quant(kind="min_max"):
    """The policy with one scale for each layer, its ranges found again."""
    found = per_tensor.with_ranges(TRACED, VARIABLES, CASE.quant, kind)
    return jax.device_get(supervised.calibrated(CASE.model, VARIABLES, found, [CASE.images]))


@functools.cache
def network():
    return fold.fold(CASE.model, CASE.variables, quant(), small_network.SHAPE, resize=True)


def test_codes_and_scales_are_those_of_the_folded_kernel():
    """Against NumPy: the largest folded weight has the highest code, and all share its scale."""
    for conv in network().convs:
        folded, q_max = folded_kernel(conv.out.name), 2 ** (conv.w_bits - 1) - 1
        scale = np.abs(folded).max() / q_max
        np.testing.assert_allclose(conv.w_scale, scale, rtol=1e-5)
        assert np.ptp(conv.w_scale) == 0
        steps = folded / scale
        np.testing.assert_array_less(np.abs(conv.weights - steps), 0.5 + 1e-3)
        assert np.abs(conv.weights.astype(int)).max() == q_max


def of_channels(kernel, gain, mean, var):
    gain = jnp.asarray(gain)
    alive = per_tensor.alive_of(gain, {"mean": jnp.asarray(mean), "var": jnp.asarray(var)})
    return np.asarray(per_tensor.of_channels(kernel, gain, alive))


def test_a_channel_that_reads_only_zeros_does_not_set_the_scale():
    kernel = jnp.broadcast_to(jnp.array([1.0, 2.0, 1.0, 1.0]), (3, 3, 1, 4))
    found = of_channels(kernel, [1.0, 0.5, 300.0, 0.0], [0.1, 0, 0, 0], [1.0, 1.0, 1e-12, 1.0])
    np.testing.assert_allclose(found[:3], [1, 2, 1 / 300], rtol=1e-6)
    assert np.isfinite(found[3]) and found[3] > 127 * 2  # its weights have code 0


def test_small_variances_alone_make_no_channel_idle():
    """Small kernels with norms that enlarge them again, and a channel that reads a constant."""
    kernel = jnp.broadcast_to(jnp.array([1e-3, 2e-3, 1e-3, 1e-3]), (3, 3, 1, 4))
    gain = 1 / np.sqrt(1e-4 + 1e-5)
    found = of_channels(kernel, [gain] * 4, [0.0] * 4, [1e-4] * 4)
    np.testing.assert_allclose(found, 2e-3, rtol=1e-6)
    kernel = jnp.broadcast_to(jnp.array([1.0, 2.0]), (1, 1, 8, 2))
    found = of_channels(kernel, [1.0, 100.0], [0.0, 0.4], [1.0, 4e-5])
    np.testing.assert_allclose(found, [200, 2], rtol=1e-6)


def test_a_layer_that_its_norm_switches_off_stays_finite():
    kernel = jnp.ones((1, 1, 3, 2))
    assert np.all(np.isfinite(of_channels(kernel, [0.0, 0.0], [0.1, 0.1], [1.0, 1.0])))
    name = next(unit.name for unit in TRACED.units if unit.site and unit.conv)
    zeroed = jax.tree.map(lambda leaf: leaf, VARIABLES)
    policy.at(zeroed["params"], name)["norm"]["scale"] *= 0
    found = per_tensor.with_ranges(TRACED, zeroed, CASE.quant, "mse")
    out = jax.jit(CASE.model.apply)({**zeroed, "quant": found}, pixels(IMAGES))
    assert np.all(np.isfinite(out))
    start = learned.begin(TRACED, zeroed["params"], found)
    read = learned.quantize(TRACED, start, jax.tree.map(jnp.asarray, found))
    out = jax.jit(CASE.model.apply)({**read, "batch_stats": zeroed["batch_stats"]}, pixels(IMAGES))
    assert np.all(np.isfinite(out))


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_a_range_that_clips_has_less_error_than_the_whole(kind):
    """Of 4 bits, in the squared error of the folded kernel."""
    conv = next(unit.name for unit in TRACED.units if unit.site and unit.site.block == 1)
    folded = folded_kernel(conv)

    def error(kind):
        leaves = policy.at(quant(kind), conv)
        graph = fold.fold(CASE.model, CASE.variables, quant(kind), small_network.SHAPE, resize=True)
        written = next(one for one in graph.convs if one.out.name == conv)
        assert int(leaves["w_bits"]) == 4 and np.ptp(written.w_scale) == 0
        return np.square(written.weights * written.w_scale[0] - folded).mean(), written.w_scale[0]

    assert error(kind)[1] <= error("min_max")[1]
    if kind == "mse":
        assert error(kind)[0] <= error("min_max")[0]


def test_the_file_computes_what_fake_quantization_with_its_biases_does():
    exact = fold.with_bias_codes({**VARIABLES, "quant": quant()}, network())
    exact = jax.tree.map(jnp.asarray, exact)
    grid = network().tensors()[TRACED.output].grid
    found = grid.reals(interpret.run(network(), CASE.images)[TRACED.output])
    wanted = np.asarray(jax.jit(CASE.model.apply)(exact, pixels(IMAGES)))
    assert np.mean(np.abs(found - wanted) < 0.5 * grid.scale) > 0.999


def test_onnx_runtime_gives_the_codes_of_the_reference():
    found = runtimes.named("onnxruntime").tensors(network(), CASE.images)
    expected = interpret.run(network(), CASE.images)
    for name, tensor in network().tensors().items():
        if tensor.grid and name in found:
            assert np.mean(found[name] != expected[name]) < 1e-4, name  # ties of sums


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin", "reference"])
def test_litert_gives_the_codes_of_the_model_of_its_kernels(kernels):
    pytest.importorskip("ai_edge_litert", reason="pip install -e '.[litert]'")
    from qnas_jax.export.litert import rounding, run, write

    ready = run.session(write.model(network()), kernels=kernels, inner=True)
    found = run.tensors(ready, network(), CASE.images)
    expected = rounding.run(network(), CASE.images, kernels)
    for name, tensor in network().tensors().items():
        if tensor.grid:
            np.testing.assert_array_equal(found[name], expected[name], name)


def test_weights_in_the_onnx_file_have_scalar_scales(tmp_path):
    import onnx

    path = tmp_path / "model.onnx"
    runtimes.named("onnxruntime").write(network(), path)
    graph = onnx.load(path).graph
    scales = {t.name: onnx.numpy_helper.to_array(t).shape for t in graph.initializer}
    codes = {
        t.name: t.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.INT4)
        for t in graph.initializer
    }
    nodes = [n for n in graph.node if n.op_type == "DequantizeLinear" and codes.get(n.input[0])]
    assert len(nodes) == len(network().convs)
    assert {scales[node.input[1]] for node in nodes} == {()}


def test_training_keeps_one_scale_and_the_norms_factors():
    start = learned.begin(TRACED, VARIABLES["params"], quant())
    assert {np.shape(step) for step in start["steps"]["weights"].values()} == {()}

    def loss(logits, labels):
        return jnp.mean(jnp.square(logits)) + 0.0 * jnp.sum(labels)

    optimizer = optimizers.sgd(0.05, 10, 1.0, 0.9, 0.0)
    step = supervised.policy_step(
        CASE.model, loss, optimizer, jax.random.key(0),
        functools.partial(learned.quantize, TRACED), "float32", None, True,
    )  # fmt: skip
    state = supervised.fresh_state({**VARIABLES, "params": start}, optimizer)
    for number in range(5):
        state, _ = step(quant(), state, IMAGES, jnp.zeros(3), jnp.int32(number))
    moved = [
        name
        for name, value in state.params["steps"]["weights"].items()
        if value != start["steps"]["weights"][name]
    ]
    assert len(moved) >= len(TRACED.convs) - 1
    read = learned.quantize(TRACED, state.params, jax.tree.map(jnp.asarray, quant()))
    variables = jax.device_get({"params": read["params"], "batch_stats": state.batch_stats})
    policy_ = jax.device_get(learned.with_fixed_ranges(read["quant"]))
    graph = fold.fold(CASE.model, variables, policy_, small_network.SHAPE, resize=True)
    assert all(np.ptp(conv.w_scale) == 0 for conv in graph.convs)
    scales = {conv.out.name: conv.w_scale[0] for conv in network().convs}
    assert any(scales[conv.out.name] != conv.w_scale[0] for conv in graph.convs)
    for conv in TRACED.convs:
        gains = [
            norms.gain(one["params"], one["batch_stats"], conv.name)
            for one in (VARIABLES, variables)
        ]
        np.testing.assert_array_equal(*gains)


def test_it_begins_as_the_network_without_training():
    start = learned.begin(TRACED, VARIABLES["params"], quant())
    read = learned.quantize(TRACED, start, jax.tree.map(jnp.asarray, quant()))
    run = jax.jit(CASE.model.apply)
    found = run({**read, "batch_stats": VARIABLES["batch_stats"]}, pixels(IMAGES))
    expected = run({**VARIABLES, "quant": quant()}, pixels(IMAGES))
    assert np.mean(np.abs(found - expected) > 1e-3) < 0.02
