"""The benchmark: its program as a user starts it, and its figures from known seconds."""

import argparse
import importlib
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

import small_audit
from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.kernels import int8

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def bench(monkeypatch):
    """The benchmark's modules, which lie beside each other."""
    monkeypatch.syspath_prepend(str(ROOT / "launch" / "bench"))
    return importlib.import_module


def figures(folder, *arguments):
    """The JSON file of a subject; modules of the tests can be imported by a config."""
    file = folder / "figures.json"
    command = [sys.executable, "launch/bench/main.py", *arguments, "--json", str(file)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())


@pytest.mark.slow
def test_a_training_step_is_measured(tmp_path):
    begin = time.monotonic()
    found = figures(tmp_path, "distill", "--blocks=6", "--batch=1", "--no-torch")
    took = time.monotonic() - begin
    assert [block["block"] for block in found["blocks"]] == [6]
    # Block 6 has one layer, 160 to 320 channels, on an eighth of 128 x 256; all six ops.
    macs = [160 * e * (160 + k * k + 320) * 16 * 32 for k in (3, 5, 7) for e in (3, 6)]
    assert found["macs"] == sum(macs)
    assert found["images_ops"] == 6
    weights = [160 * e * (160 + k * k + 320) for k in (3, 5, 7) for e in (3, 6)]
    norms = [2 * (2 * 160 * e + 320) for e in (3, 6)] * 3
    assert found["gradient_bytes"] == 4 * (sum(weights) + sum(norms))
    # Seconds, not other units: three steps and the compilation fit into the program's time.
    assert 0 < 3 * found["step_s"] + found["compile_s"] < took
    # On a busy machine the measured peak may be too low, so that the share has no upper bound here.
    of_peak = 6 * found["macs"] / found["step_s"] / found["matmul_flops"]
    assert found["peak_share"] == pytest.approx(of_peak)
    assert "ratio_torch" not in found


def test_a_row_of_memory_says_what_fits(bench):
    memory = bench("memory")
    row = memory.row(memory.Memory(10**9, 13 * 10**9))
    assert row == ["1.00", "14.0", "?", "yes", "yes"]  # 1.75 * 14 lies between 16 and 40
    assert memory.row(memory.Memory(0, 50 * 10**9))[2:] == ["no", "no", "?"]


def test_memory_of_a_table_grows_with_its_images(bench):
    programs = bench("stage_programs")
    case = programs.case_of(small_audit.given())
    for how in itertools.product(("int8", "float32"), (False, True)):
        one, four = (programs.table_unit(case, images, *how).memory().total for images in (1, 4))
        assert 2 < four / one <= 4, how  # the weights stay as they are


def test_a_program_is_compiled_and_run_where_the_benchmark_runs(bench):
    programs = bench("stage_programs")
    ones = programs.jax.ShapeDtypeStruct((1000, 1000), "float32")
    found = bench("memory").measure(programs.Program(lambda x, y: (x @ y, y), (ones, ones), (1,)))
    # Three arrays, as the second argument is given back in its place, and a few pointers.
    assert found.bytes == pytest.approx(3 * 4e6, rel=1e-3)
    assert found.compile_s > 0 and found.run_s > 0


def test_rates_follow_from_the_seconds(bench):
    one = {"images_ops": 12, "step_s": 0.5, "macs": 1e9, "torch_step_s": 2.0}
    found = bench("distill")._rated(one, peak=48e9)
    assert found["images_per_s_op"] == 24
    assert found["torch_images_per_s_op"] == 6
    assert found["ratio_torch"] == 4, "above one where torch is slower"
    assert found["peak_share"] == 0.25, "forward and twice as much backward, two FLOPs for a MAC"


def test_figures_in_all_are_of_the_whole_step_or_of_all_blocks(bench):
    distill = bench("distill")
    blocks = [
        {"images_ops": 6, "macs": 1e9, "step_s": 1.0, "torch_step_s": 2.0, "compile_s": 5.0},
        {"images_ops": 12, "macs": 2e9, "step_s": 2.0, "torch_step_s": 7.0, "compile_s": 1.0},
    ]
    for block, diff in zip(blocks, (3e-6, 1e-6), strict=True):
        block |= {"max_rel_diff_loss": diff, "forward_bytes": 1, "gradient_bytes": 1}
    summed = distill._totals(blocks, {}, peak=18e9)
    assert (summed["step_s"], summed["torch_step_s"], summed["compile_s"]) == (3, 9, 6)
    assert (summed["images_per_s_op"], summed["ratio_torch"]) == (6, 3)
    assert summed["peak_share"] == pytest.approx(18e9 / 3 / 18e9)
    assert summed["max_rel_diff_loss"] == 3e-6
    whole = distill._totals(blocks, {"step_s": 1.5}, peak=18e9)
    assert (whole["step_s"], whole["step_s_by_block"]) == (1.5, 3)
    assert (whole["images_per_s_op"], whole["ratio_torch"]) == (12, 6)


def test_imbalance_is_the_slowest_over_the_mean(bench):
    distill = bench("distill")
    found = distill._imbalance((6.0, 1.0, 1.0, 1.0, 1.0, 2.0), (0.0,) * 6, parts=1)
    assert found["6"] == 3.0, "a device for each block: 6 over a mean of 2"
    assert found["2"] == 1.0


def test_a_rate_is_how_many_times_longer_the_peer_takes(bench):
    lut = bench("lut")
    assert lut._ratio({"torch_loop_s": 6.0, "engine_s": 2.0}, "torch_loop_s", "engine_s") == 3
    assert lut._ratio({"engine_s": 2.0}, "torch_loop_s", "engine_s") is None


def test_a_layer_is_timed_in_the_shape_that_it_has_in_its_block(bench):
    block = space.Block(16, 24, stride=2, dilation=3, depth=3, dilate="first")
    layer = bench("layers")._layer
    assert layer(block, 0) == space.Block(16, 24, stride=2, dilation=3, depth=1)
    assert layer(block, 1) == space.Block(24, 24, stride=1, dilation=1, depth=1)


@pytest.mark.parametrize("subject", ["lut", "layers"])
@pytest.mark.parametrize("blocks", ["7", "1,x", ""])
def test_blocks_that_table_1_has_not_are_refused(bench, subject, blocks):
    given = argparse.Namespace(blocks=blocks, images=1, images_per_pass=0)
    refusal = re.escape(f"--blocks={blocks}: must be numbers from 1 to 6")
    with pytest.raises(InputError, match=refusal):
        bench(subject).run(given)


@pytest.mark.slow
def test_layers_beside_onnxruntime(tmp_path):
    found = figures(tmp_path, "layers", "--blocks", "6")
    assert len(found["layers"]) == 6 and found["threads"] >= 1
    assert all(one["engine_s"] > 0 and one["ort_s"] > 0 for one in found["layers"])


def test_layers_are_timed_only_where_the_engine_is_in_c(bench, monkeypatch):
    layers = bench("layers")
    monkeypatch.setattr(layers.int8, "find_kernel", lambda: int8.Found("XLA", False, "no c++"))
    with pytest.raises(InputError, match=re.escape("the engine is not in C++ here: no c++")):
        layers.run(argparse.Namespace(blocks="1"))


def test_what_a_user_waits_for_is_taken_from_fewer_images(bench):
    lut = bench("lut")
    total = {"compile_s": 5.0, "calibrate_s": 2.0, "engine_s": 1.0}
    assert lut._end_to_end(total, 4) == {"end_to_end_s": 37, "ratio_end_to_end_torch": None}
    peer = {"torch_calibrate_s": 6.0, "torch_loop_s": 22.0}
    found = lut._end_to_end({**total, **peer}, 4)
    assert found["ratio_end_to_end_torch"] == (8 * 6 + 16 * 22) / 37


@pytest.mark.slow
def test_onnxruntime_runs_a_block_of_codes(bench):
    ort = bench("lut_ort")
    block = space.Block(in_channels=8, channels=8, stride=1, dilation=2, depth=2)
    paths = [(space.Op(3, 3), space.Op(7, 6))]
    begin = time.perf_counter()
    run, load = ort.seconds(block, paths, (8, 16), threads=1)
    assert 0 < ort.REPEATS * run + load < time.perf_counter() - begin


@pytest.mark.parametrize(
    ("fast", "kernels"),
    [(True, {"auto": "C++", "int8": "C++"}), (False, {"auto": None, "int8": "XLA"})],
)
def test_the_arithmetic_is_that_of_a_run(bench, monkeypatch, fast, kernels):
    lut = bench("lut")
    found = lut.int8.Found("C++" if fast else "XLA", fast, "" if fast else "no compiler")
    monkeypatch.setattr(lut.int8, "find_kernel", lambda: found)
    assert lut._kernel("float32") is None
    assert {name: lut._kernel(name) for name in kernels} == kernels


@pytest.mark.bench
def test_a_training_step_is_torchs_and_is_compared_with_it(tmp_path):
    begin = time.monotonic()
    found = figures(tmp_path, "distill", "--blocks=6", "--batch=2")
    assert 0 < 3 * (found["torch_step_s"] + found["step_s"]) < time.monotonic() - begin
    assert found["max_rel_diff_loss"] < 1e-5
    assert found["median_rel_diff_gradient"] < 1e-2


@pytest.mark.bench
def test_the_table_is_filled_by_all_four(tmp_path):
    found = figures(tmp_path, "lut", "--blocks=6", "--sample=2")
    assert found["rows"] == 6
    assert found["max_rel_diff"] < 1e-2
    assert {"ratio_jax_loop", "ratio_torch_loop", "ratio_torch_tree"} <= found.keys()
    assert found["ratio_ort_int8_with_sessions"] > found["ratio_ort_int8"] > 0
    assert found["ratio_end_to_end_torch"] > 0


@pytest.mark.slow
def test_a_step_of_hqnas_is_measured_beside_that_of_a_subnet(tmp_path):
    config = tmp_path / "small.py"
    config.write_text("import small_hqnas\n\nget_config = small_hqnas.small\n")
    begin = time.monotonic()
    found = figures(tmp_path, "hqnas", f"--config={config}", "--groups=2", "--steps=3")
    took = time.monotonic() - begin
    assert (found["batch"], found["steps"]) == (8, 4 + 6)
    assert found["hours"] == pytest.approx(found["step_s"] * 10 / 3600)
    # Seconds, not other units: seven steps and the compilations fit into the program's time.
    for name in ("step", "subnet"):
        assert found[f"{name}_s"] > 0
    steps = 7 * (found["step_s"] + found["subnet_s"])
    assert steps + found["step_compile_s"] + found["subnet_compile_s"] < took
    # A step of the search holds the activations of one network at a time.
    assert 1 < found["step_bytes"] / found["subnet_bytes"] < 3
