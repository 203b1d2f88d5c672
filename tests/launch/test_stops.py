"""Runs that are stopped, killed or spread over processes end as whole ones."""

import json
import re
import shutil
import signal
import socket
import time

import numpy as np
import pytest

from programs_run import SMOKE, cache, finished, last_metrics, run, start
from qnas_jax.bwnas.lut import table

__all__ = ["cache", "finished"]


LONGER = ["--config.supernet.steps=60", "--config.lut.images=16", "--config.lut.images_per_pass=1"]


@pytest.fixture(scope="module")
def longer(tmp_path_factory, cache):
    """A whole run, long enough in supernet and table to be stopped there."""
    workdir = tmp_path_factory.mktemp("runs") / "longer"
    code, output = run(SMOKE, f"--workdir={workdir}", *LONGER, cache=cache)
    assert code == 0, output
    return workdir


def _stop_when(process, stop, seen):
    """Sends the signal; returns the exit code and all that was said."""
    while not seen():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(stop)
    output, _ = process.communicate()
    return process.returncode, output


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM], ids=lambda stop: stop.name)
def test_a_run_stopped_in_supernet_and_table_ends_with_the_numbers_of_a_whole_one(
    longer, tmp_path, cache, stop
):
    whole, parts = longer, tmp_path / "parts"

    def supernet_saved():
        saved = (parts / "supernet" / "checkpoint").glob("[0-9]*")
        return any(int(folder.name) >= 6 for folder in saved if folder.name.isdigit())

    def unit_done():
        return any((parts / "lut" / "partial").glob("noise-*.npy"))

    process = start(SMOKE, f"--workdir={parts}", *LONGER, cache=cache)
    first = _stop_when(process, stop, supernet_saved)
    process = start(SMOKE, f"--workdir={parts}", *LONGER, cache=cache)
    second = _stop_when(process, stop, unit_done)
    assert not (parts / "lut" / "lut.npz").exists()
    code, output = run(SMOKE, f"--workdir={parts}", *LONGER, cache=cache)
    assert code == 0, output
    assert "lut: resumed" in output
    if stop == signal.SIGTERM:
        assert (first[0], second[0]) == (143, 143)
        end = "; the same command resumes it"
        message = rf"error: stopped by SIGTERM at step (\d+) of supernet{end}"
        step = re.fullmatch(message, first[1].splitlines()[-1])
        assert step, first[1]
        assert f"supernet: resumed at step {step[1]} of 60" in second[1]
        assert second[1].splitlines()[-1] == f"error: stopped by SIGTERM{end}"

    assert last_metrics(parts) == last_metrics(whole)
    assert (parts / "search/front.csv").read_text() == (whole / "search/front.csv").read_text()
    a, b = (table.load(folder / "lut" / "lut.npz") for folder in (whole, parts))
    np.testing.assert_array_equal(a.nsr, b.nsr)
    a, b = (json.loads((f / "report" / "results.json").read_text()) for f in (whole, parts))
    for results in (a, b):
        for network in (results["teacher"], *results["subnets"]):
            for name in ("float_ms", "quantized_ms", "ratio"):  # of measured seconds
                network.get("file", {}).pop(name, None)
    assert a["subnets"] == b["subnets"]
    assert a["teacher"] == b["teacher"]


def _start_two_processes(workdir, cache, *settings):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        coordinator = f"--coordinator=localhost:{probe.getsockname()[1]}"
    both = [SMOKE, f"--workdir={workdir}", *settings, coordinator, "--processes=2"]
    return [start(*both, f"--process={number}", cache=cache) for number in (0, 1)]


def _run_two_processes(workdir, cache, *settings):
    for process in _start_two_processes(workdir, cache, *settings):
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, output


TOGETHER = [
    *("--config.supernet.parts=2", "--config.supernet.steps=30", "--config.train.steps=30"),
    *("--config.lut.images=16", "--config.lut.images_per_pass=1", "--config.retrain.qat_steps=30"),
    "--config.retrain.subnets=1",
    "--config.retrain.teacher=False",
]


def _has_step(workdir, prefix, step):
    lines = (workdir / "metrics.jsonl").exists() and last_metrics(workdir)
    return any(stage.startswith(prefix) and number >= step for stage, number in lines or ())


# In each stage: what is there when the signal comes, the process that gets it, the signal, and the
# exit codes of both.
STOPS = {
    "teacher": (lambda run: _has_step(run, "teacher", 5), 1, signal.SIGTERM, (143, 143)),
    "supernet": (lambda run: _has_step(run, "supernet", 5), 1, signal.SIGKILL, (4, -9)),
    "table": (lambda run: any(run.glob("lut/partial/noise-*")), 0, signal.SIGTERM, (143, 143)),
    "retraining": (lambda run: _has_step(run, "retrain/", 5), 0, signal.SIGKILL, (-9, 4)),
    "qat": (lambda run: _has_step(run, "qat/", 5), 1, signal.SIGTERM, (143, 143)),
    "files": (lambda run: any(run.glob("export/**/model.onnx")), 0, signal.SIGTERM, (143, 143)),
}


@pytest.mark.slow
def test_two_processes_stopped_in_every_stage_end_with_the_numbers_of_one(tmp_path, cache):
    one, two = tmp_path / "one", tmp_path / "two"
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    code, output = run(SMOKE, f"--workdir={one}", *TOGETHER, cache=cache, **devices)
    assert code == 0, output
    for stage, (is_there, which, stop, codes) in STOPS.items():
        processes = _start_two_processes(two, cache, *TOGETHER)
        while not is_there(two):
            assert all(p.poll() is None for p in processes), [p.communicate() for p in processes]
            time.sleep(0.05)
        processes[which].send_signal(stop)
        said = [process.communicate(timeout=180)[0] for process in processes]
        assert tuple(process.returncode for process in processes) == codes, (stage, said)
        for process, text in zip(processes, said, strict=True):
            last = text.splitlines()[-1] if text else ""
            if process.returncode == 143:
                assert last.startswith("error: stopped by SIGTERM"), (stage, text)
            if process.returncode == 4:
                assert last.startswith("error: a process is gone or failed ("), (stage, text)
    _run_two_processes(two, cache, *TOGETHER)

    of_one, of_two = (last_metrics(folder) for folder in (one, two))
    assert of_one.keys() == of_two.keys()
    for place, values in of_two.items():
        for name in values.keys() - {"stage", "step"}:
            assert values[name] == pytest.approx(of_one[place][name], rel=1e-4), (place, name)
    a, b = (table.load(folder / "lut" / "lut.npz") for folder in (one, two))
    np.testing.assert_allclose(a.nsr, b.nsr, rtol=1e-4)
    a, b = (json.loads((f / "report" / "results.json").read_text()) for f in (one, two))
    assert a["teacher"]["quantized"] == pytest.approx(b["teacher"]["quantized"], abs=0.1)
    assert [one["subnet"] for one in a["subnets"]] == [one["subnet"] for one in b["subnets"]]
    for of_one, of_two in zip(a["subnets"], b["subnets"], strict=True):
        assert of_one["quantized"] == pytest.approx(of_two["quantized"], abs=0.1)


@pytest.mark.slow
def test_the_tools_go_on_from_a_run(finished, tmp_path, cache):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    before = (workdir / "lut" / "lut.npz").read_bytes()
    for stage in ("lut", "search", "retrain", "report"):
        shutil.rmtree(workdir / stage)
    _run_two_processes(workdir, cache)
    assert (workdir / "lut" / "lut.npz").read_bytes() == before

    code, output = run(f"--workdir={workdir}", cache=cache, program="enough_images")
    assert code == 0, output
    assert (workdir / "lut" / "enough_images.svg").exists()
    code, output = run(SMOKE, f"--workdir={workdir}", cache=cache, program="policies")
    assert code == 0, output
    assert "4, 6, 8 per layer" in output
