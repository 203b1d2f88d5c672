"""A whole run of HAQ on a network of five layers."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import small_haq
from qnas_jax.errors import InputError
from qnas_jax.haq import pipeline
from qnas_jax.haq.config import METHODS
from qnas_jax.hardware import cost_matrix, given, named
from qnas_jax.nn.trace import trace
from qnas_jax.run.log import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
CONVS = trace(small_haq.Small(12), (32, 32, 3)).convs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("haq")
    return workdir, pipeline.run(small_haq.small(), workdir)


def test_every_method_leaves_a_record_for_each_seed(finished):
    workdir, results = finished
    assert results == json.loads((workdir / "haq" / "results.json").read_text())
    methods = [record["method"] for record in results["records"]]
    assert set(methods) == set(METHODS)
    for method in METHODS:
        drawn = method in ("haq", "random", "evolution")
        assert methods.count(method) == (2 if drawn else 1), method
    for record in results["records"]:
        assert record["cost"] <= record["budget"] * (1 + 1e-6)
        assert record["bits"][0] == record["bits"][-1] == [8, 8], "the first and the last keep 8"
        assert 0 <= record["accuracy"] <= 100
    assert results["metric"] == "top1"
    assert "fp32" in results


def test_costs_are_those_of_the_device(finished):
    record = next(r for r in finished[1]["records"] if r["method"] == "haq")
    device, total = named("bismo_edge"), 0.0
    for conv, pair in zip(CONVS, record["bits"], strict=True):
        found = cost_matrix(device, [given(conv.name, (conv,))], [tuple(pair)])
        total += found["latency_ms"].item()
    assert record["cost"] == pytest.approx(total)


def test_a_policy_leaves_with_the_names_of_its_units(finished):
    workdir, results = finished
    record = next(r for r in results["records"] if r["method"] == "exact")
    held = json.loads((workdir / "haq/policies/bismo_edge-latency_ms-4-exact-0.json").read_text())
    assert list(held["layers"].values()) == record["bits"]
    stem, depthwise, project, point, classifier = record["bits"]
    # A unit's second number are the bits of its output, which the next convolution reads.
    assert held["units"] == {
        "input": [8, 8],
        "stem": [stem[0], depthwise[1]],
        "depthwise": [depthwise[0], project[1]],
        "project": [project[0], 8],  # only the sum reads it
        "add": [8, point[1]],
        "point": [point[0], 8],  # only the mean reads it
        "mean": [8, classifier[1]],
        "classifier": [classifier[0], 8],
    }


def test_the_files_compute_what_was_evaluated(finished):
    workdir, results = finished
    (name,) = results["networks"]
    assert name.startswith("bismo_edge-latency_ms-4-")
    parity = json.loads((workdir / "export" / name / "parity.json").read_text())
    assert parity["top1"]["model.onnx"] == parity["top1"]["jax_int8"]
    assert parity["top1"]["jax_int8"] == pytest.approx(results["networks"][name]["quantized"])


def test_the_exported_network_is_the_tested_one(finished):
    """Trained alike, with norms of the same images; only biases are rounded in addition."""
    workdir, results = finished
    (name,) = results["networks"]
    of_agent = [r for r in results["records"] if r["method"] == "haq"]
    best = max(of_agent, key=lambda r: r["reward_accuracy"])
    parity = json.loads((workdir / "export" / name / "parity.json").read_text())
    assert parity["top1"]["jax_quantized"] == pytest.approx(best["accuracy"], abs=5.01)


def test_the_page_has_the_figures_and_no_field_left(finished):
    page = (finished[0] / "report" / "index.html").read_text()
    assert page.count("<svg") == 3
    assert "$" not in page.replace("$\\mathdefault", "").split("<svg")[0]
    assert all(method in page for method in METHODS)


def test_episodes_are_logged(finished):
    logged = read_metrics(finished[0], "haq")
    assert list(logged) == list(range(1, 13))
    assert all({"reward", "accuracy", "best"} <= values.keys() for values in logged.values())
    best = [values["best"] for values in logged.values()]
    assert best == sorted(best)


def test_a_second_run_does_nothing_again(finished, monkeypatch):
    workdir, results = finished

    def never(*_):
        raise AssertionError("a finished method runs again")

    monkeypatch.setattr(pipeline.rivals, "run", never)
    assert pipeline.run(small_haq.small(), workdir)["records"] == results["records"]


@pytest.mark.slow
def test_shared_weights_have_bits_for_weights_alone(tmp_path):
    config = small_haq.small(
        quantizer="kmeans", targets=("none:size_bytes",), budgets=(3.0,), seeds=1, episodes=6,
        methods=("haq", "uniform", "exact"),
    )  # fmt: skip
    results = pipeline.run(config, tmp_path)
    for record in results["records"]:
        assert {a for _, a in record["bits"]} == {8}
        size = sum(
            -(-conv.weights * w // 8) + 4 * 2**w + 4 * conv.out_channels
            for conv, (w, _) in zip(CONVS, record["bits"], strict=True)
        )
        assert record["cost"] == size <= record["budget"] * (1 + 1e-6)


CONFIG = """
import small_haq

def get_config():
    return small_haq.small(episodes=40, methods=("haq", "uniform"), exports=False)
"""


@pytest.mark.slow
def test_a_killed_run_resumes_at_an_episode_with_the_same_curve(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(CONFIG)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}

    def command(workdir):
        program = [sys.executable, "launch/main.py", "--config", str(file)]
        return [*program, "--workdir", str(tmp_path / workdir)]

    how = {"cwd": ROOT, "env": environment, "text": True}
    process = subprocess.Popen(command("killed"), **how, stderr=subprocess.DEVNULL)
    try:
        saved = tmp_path / "killed" / "haq" / "checkpoint"
        while not any(saved.glob("[0-9]*")) and process.poll() is None:
            time.sleep(0.05)
        time.sleep(0.3)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    for workdir in ("killed", "whole"):
        done = subprocess.run(command(workdir), **how, capture_output=True)
        assert done.returncode == 0, done.stderr
    killed, whole = (np.load(tmp_path / w / "haq" / "curves.npz") for w in ("killed", "whole"))
    for name in whole.files:
        np.testing.assert_array_equal(killed[name], whole[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": (0.01,)}, "the smallest bitwidths have"),
        ({"targets": ("bismo_edge:energy_mj",)}, "does not know 'energy_mj'; it knows size_bytes"),
        (
            {"targets": ("toaster:latency_ms",)},
            "'toaster' is no device; there are none, x86_avx2",
        ),
        ({"targets": ("table:latency_ms",)}, "haq.table=''"),
        ({"network": "mobilenet_v9"}, "haq.network='mobilenet_v9': must be"),
        ({"network": f"{small_haq.__file__}:nothing"}, "has no nothing()"),
        ({"network": f"{small_haq.__file__}:small"}, "takes 0 positional arguments"),
        ({"network": "nowhere.py:build"}, "No such file"),
        ({"reward_images": 70}, "haq.reward_images"),
        ({"budgets": (9.0,)}, "haq.budgets"),
        ({"quantizer": "kmeans"}, "none:size_bytes"),
    ],
)
def test_bad_settings_are_refused_in_one_line_before_anything_runs(tmp_path, changes, message):
    with pytest.raises(InputError) as error:
        pipeline.run(small_haq.small(**changes), tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir()), "nothing was written"


def test_a_network_without_layers_to_choose_for_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"convolutions .*: 1, must be at least 3"):
        pipeline.run(small_haq.small(network=f"{small_haq.__file__}:tiny"), tmp_path)


def test_another_network_is_refused_in_the_same_folder(finished):
    changed = small_haq.small(network="mobilenet_v1")
    with pytest.raises(InputError, match=r"teacher was made from other settings \(network.name"):
        pipeline.run(changed, finished[0])


def test_a_table_of_zeros_is_refused(tmp_path):
    table = tmp_path / "table.csv"
    lines = [f"{conv.name},{w},{a},0" for conv in CONVS for w in range(2, 9) for a in range(2, 9)]
    table.write_text("\n".join(["layer,w_bits,a_bits,latency_ms", *lines]))
    with pytest.raises(InputError, match="'table:latency_ms' costs nothing"):
        pipeline.run(
            small_haq.small(targets=("table:latency_ms",), table=str(table)), tmp_path / "run"
        )


def test_a_table_must_have_every_layer(tmp_path):
    lines = ["layer,w_bits,a_bits,latency_ms"]
    for conv in CONVS:
        lines += [f"{conv.name},{w},{a},{w * a}" for w in range(2, 9) for a in range(2, 9)]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(line for line in lines if not line.startswith("point,3,5,")))
    config = small_haq.small(targets=("table:latency_ms",), table=str(table))
    with pytest.raises(InputError, match="no latency_ms of point at w3a5"):
        pipeline.run(config, tmp_path / "run")
    table.write_text("\n".join(lines))
    config.haq.methods, config.haq.exports = ("uniform", "exact"), False
    (uniform, exact) = pipeline.run(config, tmp_path / "run")["records"]
    assert uniform["cost"] == uniform["budget"] == 2 * 64 + 3 * 16
    assert exact["cost"] <= uniform["cost"]


@pytest.mark.slow
def test_no_policy_is_compiled_anew(finished):
    """Bits are data: a run of scores compiles as much as one score."""
    from qnas_jax.haq import experiment
    from qnas_jax.stages import scoring

    workdir, _ = finished
    begun = experiment.begin(small_haq.small(), workdir)
    tested, compiled = experiment.tested(begun), []
    score = experiment.scorer(begun, tested, begun.rewards, 2, 1e-3)
    policies = np.random.default_rng(0).integers(2, 9, (4, len(CONVS), 2))
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        one = score(policies[:1])
        first = len(compiled)
        several = score(policies)
    finally:
        jax.monitoring.clear_event_listeners()
    assert first > 0
    assert len(compiled) == first
    assert one.accuracy[0] == several.accuracy[0]
    wide = scoring.evaluator(
        tested, scoring.batches(begun.rewards, 24), width=3
    )(policies)  # fmt: skip
    narrow = scoring.evaluator(tested, scoring.batches(begun.rewards, 24))(policies)
    np.testing.assert_allclose(wide.accuracy, narrow.accuracy, atol=5)
    np.testing.assert_allclose(wide.loss, narrow.loss, rtol=1e-3)
