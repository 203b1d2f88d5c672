"""The program as a user runs it: whole runs, stops, and what is said of wrong input."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import onnxruntime
import pytest

import cpu
from qnas_jax.bwnas.lut import table
from qnas_jax.export import runtimes
from qnas_jax.train import loop

ROOT = pathlib.Path(__file__).parents[2]
SMOKE = "--config=configs/smoke.py"


def start(*arguments, cache, program="run"):
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # set by JAX in this process; shells have none
    return subprocess.Popen(
        [sys.executable, "launch/main.py", program, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*arguments, cache, program="run"):
    process = start(*arguments, cache=cache, program=program)
    output, _ = process.communicate(timeout=900)
    return process.returncode, output


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    workdir = tmp_path_factory.mktemp("runs") / "smoke"
    code, output = run(SMOKE, f"--workdir={workdir}", cache=cache)
    assert code == 0, output
    return workdir, output


def test_a_run_leaves_what_the_readme_promises(finished):
    workdir, output = finished
    results = json.loads((workdir / "report" / "results.json").read_text())
    figures = {"fp32", "quantized", "size_bytes", "encoder_size_bytes", "file"}
    assert set(results["teacher"]) == figures
    assert set(results["retrained_teacher"]) == figures - {"file"}
    again = json.loads((workdir / "retrained_teacher" / "metrics.json").read_text())
    assert again["miou_quantized"] == results["retrained_teacher"]["quantized"]
    steps = [step for stage, step in _last_metrics(workdir) if stage == "retrained_teacher"]
    assert len(steps) == 6, "as many as a subnet"
    assert len(results["subnets"]) == 2
    for subnet in results["subnets"]:
        assert set(subnet) == figures | {"subnet", "nsr"}
        folder = workdir / "retrain" / subnet["subnet"]
        measured = json.loads((folder / "metrics.json").read_text())
        assert measured["miou_quantized"] == subnet["quantized"]
    stages = {"teacher", "supernet", "lut", "search", "latency", "retrain", "export"}
    assert set(results["seconds"]) == stages
    drawn = ("front.svg", "architectures.svg", "supernet.svg", "classes.svg", "samples.png")
    for name in ("index.html", *drawn):
        assert (workdir / "report" / name).stat().st_size > 1000
    blocks = json.loads((workdir / "supernet" / "nsr.json").read_text())["blocks"]
    assert [len(block["random"]) for block in blocks] == [4, 2, 2, 2, 2, 2], "all there are"
    assert blocks[0]["training"] == _last_metrics(workdir)["supernet", 4]["nsr_block1"]
    assert list(workdir.glob("events.*"))
    assert {"teacher", "supernet"} < {stage for stage, _ in _last_metrics(workdir)}
    assert "ETA" in output
    assert f"report: {workdir / 'report' / 'index.html'}" in output


def test_the_arithmetic_of_the_table_is_named(finished):
    workdir, output = finished
    made = json.loads((workdir / "lut" / "lut.json").read_text())
    hashed = json.loads((workdir / "lut" / "made_from.json").read_text())["made_from"]
    asked = json.loads((workdir / "config.json").read_text())["lut"]["compute"]
    assert asked == "auto" and hashed["compute"] == made["compute"]
    assert f"images in {made['compute']} and" in output
    if cpu.HAS_VNNI:
        assert (made["compute"], made["kernel"]) == ("int8", "C++")
        assert "lut: int8 in C++" in output


def test_what_was_measured_is_what_the_files_compute(finished):
    """metrics.json, parity.json and the NumPy reference say the same."""
    workdir, _ = finished
    exported = sorted((workdir / "export").iterdir())
    assert len(exported) == 3
    for folder in exported:
        source = folder.name if folder.name == "teacher" else f"retrain/{folder.name}"
        measured = json.loads((workdir / source / "metrics.json").read_text())
        found = json.loads((folder / "parity.json").read_text())
        assert found["miou"]["jax_int8"] == measured["miou_quantized"]
        assert found["codes"]["jax_int8"]["differ"] == 0
        assert found["agreement"]["jax_int8"]["model.onnx"] > 99.9
        described = json.loads((folder / "model.json").read_text())
        sizes = described["file_bytes"]
        assert set(described["exact_with"]) == set(sizes)
        assert found["device"] == runtimes.device()
        assert set(found["runtimes"]) == {one.name for one in runtimes.installed()}
        files = {name for name in found["miou"] if name.startswith("model.")}
        assert sizes == {name: (folder / name).stat().st_size for name in files}


@pytest.mark.slow
def test_a_finished_run_is_exported_for_images_of_another_size(finished, cache, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    own = {p: p.read_bytes() for p in (workdir / "export").rglob("*") if p.is_file()}
    teacher = json.loads((workdir / "teacher" / "made_from.json").read_text())["hash"]
    mark = json.loads((workdir / "export" / "teacher" / "made_from.json").read_text())
    assert mark["made_from"] == {"network": teacher}, "runs that know no size stay finished"
    arguments = [SMOKE, f"--workdir={workdir}", "--config.hardware.image_size=(48, 64)"]
    code, output = run(*arguments, cache=cache, program="export")
    assert code == 0, output
    results = json.loads((workdir / "report" / "results.json").read_text())
    names = ["teacher", *(subnet["subnet"] for subnet in results["subnets"])]
    exported = [workdir / "export" / "48x64" / name for name in names]
    for folder in exported:
        described, found = (
            json.loads((folder / f"{name}.json").read_text()) for name in ("model", "parity")
        )
        assert described["picture"] == found["picture"] == [48, 64]
        mark = json.loads((folder / "made_from.json").read_text())["made_from"]
        assert mark["picture"] == [48, 64], "as in marks of older runs"
        assert described["output"]["shape"] == [48, 64, 1]
        assert found["images"] == 6
        assert found["codes"]["jax_int8"]["differ"] == 0
        assert found["agreement"]["jax_int8"]["model.onnx"] > 99
        (read,) = onnxruntime.InferenceSession(folder / "model.onnx").get_inputs()
        assert read.shape == ["n", 48, 64, 3]
        row = f"{found['miou']['model_float.onnx']:.2f} +{found['miou']['model.onnx']:.2f}"
        assert re.search(rf"{row} +\d+\.\d{{4}}  model\.onnx +{folder.name}\n", output)
    assert {p: p.read_bytes() for p in own} == own, "the run's own files stay"
    before = {p: p.stat().st_mtime_ns for folder in exported for p in folder.iterdir()}
    shutil.rmtree(exported[0])
    code, output = run(*arguments, cache=cache, program="export")
    assert code == 0, output
    assert "teacher: model.onnx for 48 x 64 has" in output
    again = {p: p.stat().st_mtime_ns for folder in exported for p in folder.iterdir()}
    assert set(again) == set(before)
    assert all((again[p] > at) == (p.parent == exported[0]) for p, at in before.items())
    code, output = run(*arguments, "--config.network.width=0.3", cache=cache, program="export")
    assert code == 2
    told = f"error: {workdir}/teacher was made from other settings (network.width: 0.25, now 0.3)"
    assert told in output.splitlines()[-1]


def test_a_file_that_loses_too_much_fails_the_run_behind_its_report(finished, cache, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    shutil.rmtree(workdir / "report")
    place = workdir / "export" / "teacher" / "parity.json"
    found = json.loads(place.read_text())
    found["miou"]["model.onnx"] -= 2.0
    place.write_text(json.dumps(found))
    code, output = run(SMOKE, f"--workdir={workdir}", cache=cache)
    assert code == 2
    (line,) = output.splitlines()
    assert line.startswith(f"error: {place}: model.onnx has mIoU")
    assert (workdir / "report" / "index.html").exists()
    larger = "--config.export.max_drop=3"
    code, output = run(SMOKE, f"--workdir={workdir}", larger, cache=cache)
    assert code == 0, output


def test_the_front_is_made_of_rows_of_the_table(finished):
    workdir, _ = finished
    rows = table.load(workdir / "lut" / "lut.npz")
    fixed = json.loads((workdir / "lut" / "lut.json").read_text())["fixed_size_bytes"]
    first, *points = [
        line.split(",") for line in (workdir / "search" / "front.csv").read_text().split()
    ]
    assert first == ["rank", "nsr", "size_bytes", "encoder_size_bytes", "subnet"]
    assert float(points[0][1]) == pytest.approx(
        sum(float(rows.nsr[rows.rows_of(b)].min()) for b in range(6)), rel=1e-6
    )
    smallest = sum(int(rows.costs["size_bytes"][rows.rows_of(b)].min()) for b in range(6))
    assert int(points[-1][2]) == smallest + fixed["stem"] + fixed["head"]


def test_a_finished_run_is_not_run_again_and_another_config_is_refused(finished, cache):
    workdir, _ = finished
    before = (workdir / "report" / "results.json").read_text()
    code, output = run(SMOKE, f"--workdir={workdir}", cache=cache)
    assert code == 0, output
    assert (workdir / "report" / "results.json").read_text() == before
    code, output = run(SMOKE, f"--workdir={workdir}", "--config.lut.images=4", cache=cache)
    assert code == 2
    assert f"error: {workdir}/lut was made from other settings (images: 8, now 4)" in output
    config = json.loads((workdir / "config.json").read_text())
    assert config["lut"]["images"] == 8, "the refused run must not leave its config behind"


def test_a_teacher_whose_run_did_not_finish_it_is_refused(finished, cache, tmp_path):
    teacher = tmp_path / "other" / "teacher"
    shutil.copytree(finished[0] / "teacher", teacher)
    mark = json.loads((teacher / "made_from.json").read_text())
    (teacher / "made_from.json").write_text(json.dumps({**mark, "done": False}))
    given = f"--config.teacher.checkpoint={teacher / 'checkpoint'}"
    code, output = run(SMOKE, given, f"--workdir={tmp_path / 'new'}", cache=cache)
    assert code == 2
    assert "its run did not finish the teacher" in output.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/none.py"], "--config=configs/none.py: cannot be used (no such file)"),
        ([SMOKE, "--config.train.stepps=3"], "did you mean config.train.steps?"),
        ([SMOKE, "--config.train.steps=many"], "many"),
        ([SMOKE, "--config.space.w_bits=(1,)"], "space.w_bits=(1,): bitwidths lie in [2, 8]"),
        ([SMOKE, "--config.data.source=cityscapes", "--config.data.root=/no/data"], "/no/data"),
        ([SMOKE, "--config.search.budgets=(('size_bytes', 1000),)"], "the smallest subnet has"),
        ([SMOKE, "--config.search.budgets=('size_bytes', 1000)"], "must be pairs, like (("),
        ([SMOKE, "--config.network.rates=(2,2)"], "network.rates=(2, 2): each only once"),
        ([SMOKE, "train.steps=3"], "settings are given as --NAME=VALUE"),
        ([SMOKE, "--config.teacher.checkpoint=/no/teacher"], "/no/teacher: no such folder"),
    ],
    ids="file key type range data budget pairs rates positional checkpoint".split(),
)  # fmt: skip
def test_wrong_input_gets_one_line_and_leaves_nothing_behind(tmp_path, arguments, message):
    code, output = run(*arguments, f"--workdir={tmp_path / 'run'}", cache=tmp_path / "cache")
    errors = [line for line in output.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]
    assert code == 2
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert not (tmp_path / "run" / "report").exists()


def test_a_process_that_finds_no_coordinator_is_told_so(finished, cache):
    workdir, _ = finished
    arguments = [SMOKE, f"--workdir={workdir}", "--processes=2", "--process=0"]
    code, output = run(*arguments, cache=cache, program="distributed")
    assert code == 2
    assert "error: --coordinator, --processes, --process: " in output


def _last_metrics(workdir):
    """Each logged step's values but for times; a step that was repeated counts once."""
    lines = list(map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()))
    for line in lines:
        line.pop(loop.WAITED)
    return {(line["stage"], line["step"]): line for line in lines}


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

    assert _last_metrics(parts) == _last_metrics(whole)
    assert (parts / "search/front.csv").read_text() == (whole / "search/front.csv").read_text()
    a, b = (table.load(folder / "lut" / "lut.npz") for folder in (whole, parts))
    np.testing.assert_array_equal(a.nsr, b.nsr)
    a, b = (json.loads((f / "report" / "results.json").read_text()) for f in (whole, parts))
    assert a["subnets"] == b["subnets"]
    assert a["teacher"] == b["teacher"]


def _start_two_processes(workdir, cache, *settings):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        coordinator = f"--coordinator=localhost:{probe.getsockname()[1]}"
    both = [SMOKE, f"--workdir={workdir}", *settings, coordinator, "--processes=2"]
    return [
        start(*both, f"--process={number}", cache=cache, program="distributed") for number in (0, 1)
    ]


def _run_two_processes(workdir, cache, *settings):
    for process in _start_two_processes(workdir, cache, *settings):
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output


@pytest.mark.slow
def test_two_processes_train_the_supernet_like_one(tmp_path, cache):
    halves = ["--config.supernet.parts=2", "--config.supernet.steps=60"]
    halves += ["--config.run.per_dispatch=2"]
    one, two = tmp_path / "one", tmp_path / "two"
    code, output = run(SMOKE, f"--workdir={one}", *halves, cache=cache)
    assert code == 0, output
    code, output = run(SMOKE, f"--workdir={two}", *halves, "--until=teacher", cache=cache)
    assert code == 0, output
    assert not (two / "supernet").exists()

    # A stop of one of them stops both at the same step.
    processes = _start_two_processes(two, cache, *halves)
    while not any(stage == "supernet" and step > 3 for stage, step in _last_metrics(two)):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    told = [process.communicate(timeout=120)[0].splitlines()[-1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143]
    assert told[0] == told[1]
    assert re.match(r"error: stopped by SIGTERM at step \d+ of supernet;", told[0])

    # Of one that is killed, the other tells in a line and ends.
    processes = _start_two_processes(two, cache, *halves)
    while max(step for stage, step in _last_metrics(two) if stage == "supernet") < 30:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)
    processes[1].kill()
    (output, _), _ = [process.communicate(timeout=120) for process in processes]
    assert processes[0].returncode == 4, output
    assert output.splitlines()[-1].startswith("error: a process is gone or failed (")
    assert output.splitlines()[-1].endswith("; start all again")

    _run_two_processes(two, cache, *halves)
    of_one, of_two = (_last_metrics(folder) for folder in (one, two))
    for place, values in of_two.items():
        for name in values.keys() - {"stage", "step"}:
            value = values[name]
            assert value == pytest.approx(of_one[place][name], rel=1e-5), (place, name)
    assert {stage for stage, _ in of_two} == {"teacher", "supernet"}
    a, b = (table.load(folder / "lut" / "lut.npz") for folder in (one, two))
    np.testing.assert_allclose(a.nsr, b.nsr, rtol=1e-4)
    code, output = run(SMOKE, f"--workdir={two}", *halves, cache=cache)
    assert code == 0, output


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
