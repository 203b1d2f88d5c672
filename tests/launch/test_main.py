"""The program as a user runs it: whole runs, stops, and what is said of wrong input."""

import json
import re
import shutil

import onnxruntime
import pytest

import cpu
from programs_run import SMOKE, cache, finished, last_metrics, run
from qnas_jax.bwnas.lut import table
from qnas_jax.export import runtimes

__all__ = ["cache", "finished"]


def test_a_run_leaves_what_the_readme_promises(finished):
    workdir, output = finished
    results = json.loads((workdir / "report" / "results.json").read_text())
    figures = {"fp32", "quantized", "size_bytes", "encoder_size_bytes", "file"}
    assert set(results["teacher"]) == figures
    assert set(results["retrained_teacher"]) == figures - {"file"}
    again = json.loads((workdir / "retrained_teacher" / "metrics.json").read_text())
    assert again["miou_quantized"] == results["retrained_teacher"]["quantized"]
    steps = [step for stage, step in last_metrics(workdir) if stage == "retrained_teacher"]
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
    assert blocks[0]["training"] == last_metrics(workdir)["supernet", 4]["nsr_block1"]
    assert list(workdir.glob("events.*"))
    assert {"teacher", "supernet"} < {stage for stage, _ in last_metrics(workdir)}
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


@pytest.mark.slow
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
    code, output = run(*arguments, cache=cache)
    assert code == 2
    assert "error: --coordinator, --processes, --process: " in output
