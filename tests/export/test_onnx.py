import collections
import dataclasses
import platform
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from qnas_jax.errors import InputError
from qnas_jax.export import fold, graph, interpret
from qnas_jax.export.onnx import run as onnx_run
from qnas_jax.export.onnx import write as onnx_file
from qnas_jax.tasks import segmentation
from qnas_jax.train import supervised
from small_network import BLOCKS, PATHS, layers_alone


def _ops(model, path):
    onnx_run.session(model, optimized=path)
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


def _codes(case, images):
    names = [name for name, tensor in case.network.tensors().items() if tensor.grid][1:]
    ready = onnx_run.session(onnx_run.with_outputs(onnx_file.model(case.network), names))
    return names, onnx_run.tensors(ready, images)


def test_every_code_is_that_of_the_integer_reference(int8):
    names, found = _codes(int8, int8.images)
    expected = interpret.run(int8.network, int8.images)
    assert len(names) == len(int8.network.nodes) - 3, "all but the logits and what follows"
    for name in names:
        np.testing.assert_array_equal(found[name], expected[name], name)
        assert found[name].max() > found[name].min(), name


def test_fewer_bits_stay_on_their_grids(mixed):
    """On images beyond what calibration has seen, so that the grids' ends are met."""
    images = np.random.default_rng(1).choice([0, 255], mixed.images.shape).astype(np.uint8)
    names, found = _codes(mixed, images)
    expected = interpret.run(mixed.network, images)
    tensors, clipped = mixed.network.tensors(), 0
    for name in names:
        grid = tensors[name].grid
        assert found[name].max() <= grid.q_max
        clipped += grid.bits < 8 and found[name].max() == grid.q_max
        # 4-bit weights run in float32: now and then a value falls to a tie's other side,
        # and what lies behind reads other codes.
        if "encoder" in name:
            differ = np.mean(found[name] != expected[name])
            assert differ <= (1e-3 if "block2" in name else 0), name
    assert {tensors[name].grid.bits for name in names} == {4, 6, 8}
    assert clipped > 5


def test_a_quantized_model_runs_fused(int8, tmp_path):
    ops = _ops(onnx_file.model(int8.network), tmp_path / "optimized.onnx")
    assert ops["QLinearConv"] == len(int8.network.convs)
    assert ops["QLinearAdd"] == sum(isinstance(n, graph.Add) for n in int8.network.nodes) == 2
    assert ops["QLinearGlobalAveragePool"] == 1
    assert not {"Conv", "FusedConv", "Add", "QuantizeLinear", "Clip"} & set(ops)
    assert ops["DequantizeLinear"] == 1, "of the logits alone"


def test_bits_from_5_on_run_fused_too(mixed, tmp_path):
    ops = _ops(onnx_file.model(mixed.network), tmp_path / "optimized.onnx")
    packed = sum(conv.w_bits <= 4 for conv in mixed.network.convs)
    assert ops["QLinearConv"] == len(mixed.network.convs) - packed
    assert packed == 3


def test_the_float_model_is_the_float_network(int8):
    ready = onnx_run.session(onnx_run.with_outputs(onnx_file.model(int8.floats), ["classifier"]))
    logits = onnx_run.tensors(ready, int8.images)["classifier"]
    expected = jax.jit(int8.model.apply)(
        int8.variables, supervised.pixels(jnp.asarray(int8.images))
    )
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    maps = supervised.predictor(int8.model, segmentation.predict)(int8.variables, int8.images)
    assert np.mean(onnx_run.run(ready, int8.images) == maps) > 0.999


def test_class_maps_are_those_of_the_simulation(int8):
    ready = onnx_run.session(onnx_file.model(int8.network))
    maps = onnx_run.run(ready, int8.images)
    assert maps.dtype == np.uint8
    assert maps.shape == int8.images.shape[:3]
    exact = fold.with_bias_codes(int8.variables, int8.network)
    simulated = supervised.predictor(int8.model, segmentation.predict)(
        {**exact, "quant": int8.quant}, int8.images
    )
    # A network that was not trained: its classes lie close together.
    assert np.mean(maps == simulated) > 0.95


def test_images_are_taken_one_by_one_or_many_at_once(int8):
    ready = onnx_run.session(onnx_file.model(int8.network))
    alone = [onnx_run.run(ready, int8.images[i : i + 1]) for i in range(3)]
    np.testing.assert_array_equal(np.concatenate(alone), onnx_run.run(ready, int8.images))


def test_four_bits_are_packed_in_pairs():
    codes = np.array([-7, 7, 3, -1, 5], np.int8).reshape(5, 1, 1, 1)
    tensor = onnx_file._packed(codes)
    assert len(tensor.raw_data) == 3
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor).astype(np.int8), codes)


def test_the_file_holds_what_the_codes_need(int8, mixed):
    sizes = {}
    for name, case in {"int8": int8, "mixed": mixed}.items():
        constants = onnx_file.model(case.network).graph.initializer
        held = sum(len(c.raw_data) for c in constants if len(c.dims) == 4)
        sizes[name] = held
        assert held == sum(
            -(-conv.weights.size // 2) if conv.w_bits <= 4 else conv.weights.size
            for conv in case.network.convs
        )
    assert sizes["mixed"] < sizes["int8"]


@pytest.mark.parametrize("bits", [(8, 8), (5, 3), (4, 8), None], ids=str)
def test_layers_run_by_themselves(bits):
    network = layers_alone(BLOCKS[0], PATHS[0], bits, (17, 24, 8))
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (2, 17, 24, 8)).astype(np.uint8)
    x = x if bits else rng.normal(0, 1, x.shape).astype(np.float32)
    found = onnx_run.run(onnx_run.session(onnx_file.model(network)), x)
    expected = interpret.run(network, x)[network.out.name]
    assert found.shape == (2, 9, 12, 8)
    if bits:
        steps = np.abs(found.astype(int) - expected)
        assert steps.max() <= (bits[0] <= 4), "packed weights run in float"
        assert len(np.unique(found)) == min(2 ** bits[1], len(np.unique(expected))) > 4
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_an_activation_within_its_grid_is_clipped(tmp_path):
    """A grid that reaches beyond what the activation allows: nothing absorbs the clip."""
    network = layers_alone(BLOCKS[0], PATHS[0][:1], (8, 8), (9, 9, 8))
    expand = network.nodes[0]
    wide = graph.QParams(8 / 255, 32, 8)
    nodes = (dataclasses.replace(expand, out=expand.out._replace(grid=wide)),)
    network = network._replace(nodes=nodes)
    x = np.random.default_rng(0).integers(0, 256, (1, 9, 9, 8)).astype(np.uint8)
    found = onnx_run.run(onnx_run.session(onnx_file.model(network)), x)
    assert (found.min(), found.max()) == (32, 32 + round(6 / wide.scale))
    np.testing.assert_array_equal(found, interpret.run(network, x)[network.out.name])


def test_a_file_that_is_no_model_is_told_of(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    for file, state in ((path, "is no model that runs here"), (tmp_path / "none.onnx", "no such")):
        with pytest.raises(InputError, match=rf"\.onnx: {state}"):
            onnx_run.session(file)
    model = onnx_file.model(layers_alone(BLOCKS[0], PATHS[0], (8, 8), (9, 9, 8)))
    with pytest.raises(InputError, match="'none': the model has no such tensor"):
        onnx_run.with_outputs(model, ["none"])


def _asks_for_exact_sums(options):
    try:
        return options.get_session_config_entry(onnx_run.EXACT[0]) == onnx_run.EXACT[1]
    except RuntimeError:  # it was not set
        return False


class _SaturatingSession:
    """ONNX Runtime on an x86 CPU with AVX2 and without VNNI: products are added in pairs."""

    def __init__(self, model, options, providers):
        graph_ = onnx.load_model_from_string(model).graph
        self.held = {one.name: onnx.numpy_helper.to_array(one) for one in graph_.initializer}
        self.most = np.inf if _asks_for_exact_sums(options) else 2**15 - 1

    def run(self, names, feeds):
        weights = self.held["weights"][:, :, 0, 0].astype(int)
        products = weights[:, :, None, None] * feeds["x"].astype(int)
        sums = (products[:, 0::2] + products[:, 1::2]).clip(None, self.most).sum(1)
        return [np.rint(sums / self.held["scale"]).astype(np.uint8)[None]]


def test_sums_that_saturate_are_found(monkeypatch):
    onnx_run.saturates.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "InferenceSession", _SaturatingSession)
        assert (onnx_run.saturates(), onnx_run.saturates(exact=True)) == (True, False)
    onnx_run.saturates.cache_clear()
    assert not onnx_run.saturates(exact=True), "on no CPU"


@pytest.mark.parametrize("saturates", [True, False])
def test_sessions_ask_for_exact_sums_where_they_would_saturate(saturates, int8, monkeypatch):
    monkeypatch.setattr(onnx_run, "saturates", lambda exact=False: saturates)
    ready = onnx_run.session(onnx_file.model(int8.network))
    assert _asks_for_exact_sums(ready.get_session_options()) == saturates


ON_ANOTHER_CPU = """
import pathlib, sys
import numpy as np
from qnas_jax.export.onnx import run
folder = pathlib.Path(sys.argv[1])
found = run.tensors(run.session(folder / "model.onnx"), np.load(folder / "images.npy"))
np.savez(folder / "found.npz", **found)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    platform.machine() != "x86_64" or not shutil.which("qemu-x86_64"),
    reason="needs an x86 CPU, and qemu-user from 7.2 on to emulate another",
)
@pytest.mark.parametrize("cpu", ["Haswell", "IvyBridge"])
def test_every_code_is_met_on_cpus_without_vnni(cpu, int8, tmp_path):
    names = [node.out.name for node in int8.network.nodes if node.out.grid]
    model = onnx_run.with_outputs(onnx_file.model(int8.network), names)
    onnx.save(model, tmp_path / "model.onnx")
    np.save(tmp_path / "images.npy", int8.images)
    command = ["qemu-x86_64", "-cpu", cpu, sys.executable, "-c", ON_ANOTHER_CPU, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "jaxlib was built using" in done.stderr:
        pytest.skip("the installed jaxlib does not run on this CPU")
    assert done.returncode == 0, done.stderr
    expected = interpret.run(int8.network, int8.images)
    found = np.load(tmp_path / "found.npz")
    for name in names:
        np.testing.assert_array_equal(found[name], expected[name], name)
