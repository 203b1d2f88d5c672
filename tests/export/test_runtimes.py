import importlib.util

import numpy as np
import pytest

from qnas_jax.export import interpret, runtimes, simulate
from qnas_jax.export.onnx import run as onnx_run


def test_litert_is_taken_where_it_is_installed(monkeypatch):
    suffixes = [runtime.suffix for runtime in runtimes.installed()]
    here = importlib.util.find_spec("ai_edge_litert") is not None
    assert suffixes == [".onnx", ".tflite"][: 1 + here]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert [runtime.suffix for runtime in runtimes.installed()] == [".onnx"]


def test_a_version_says_what_sessions_set(monkeypatch):
    """So that no table mixes times with it and without it."""
    found = {}
    for saturates in (False, True):
        monkeypatch.setattr(
            onnx_run, "saturates", lambda exact=False, on=saturates: on and not exact
        )
        found[saturates] = runtimes.onnxruntime()
    option = "session.x64quantprecision=1"
    assert (found[False].option, found[True].option) == ("", option)
    assert found[True].version == f"{found[False].version} with {option}"
    assert not found[True].saturates
    monkeypatch.setattr(onnx_run, "saturates", lambda exact=False: True)
    assert runtimes.onnxruntime().saturates
    assert option in found[True].exact_with


@pytest.mark.parametrize("number", [0, 1], ids=["onnx", "litert"])
def test_a_runtime_writes_and_runs_a_network(number, int8, tmp_path):
    if number == len(runtimes.installed()):
        pytest.skip("pip install -e '.[litert]'")
    runtime = runtimes.installed()[number]
    network, images = int8.network, int8.images
    path = tmp_path / f"model{runtime.suffix}"
    path.write_bytes(runtime.file(network))
    maps = runtime.class_maps(path)(images)
    expected = simulate.simulator(network)(images)
    assert maps.dtype == np.uint8
    assert np.mean(maps == expected) > 0.98, "a network that was not trained: classes are close"
    found, codes = runtime.tensors(network, images), interpret.run(network, images)
    wanted = {node.out.name for node in network.nodes if node.out.grid}
    assert wanted <= set(found)
    first = next(iter(network.nodes)).out.name
    np.testing.assert_array_equal(found[first], codes[first])
