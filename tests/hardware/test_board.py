"""What tools print on boards becomes a table."""

import pathlib

import pytest

from qnas_jax.errors import InputError
from qnas_jax.hardware import board, measured
from qnas_jax.hardware.measured import Subject

SAMPLES = pathlib.Path(__file__).parent / "samples"
LAYER = Subject("block1/layer0", "k3e6", 48, 96, 8, 16, 2, 1, 8, 8)
STEM = Subject("stem", "", 96, 192, 3, 8, 1, 1, 8, 8)
RUN = "count=50 first=1 curr=1 min=1 max=1 avg={} std=4 p5=1 median={} p95=1\n"


@pytest.mark.parametrize(
    ("sample", "found"),
    [
        ("benchmark_model.log", (1240.27, 2.565, 1239.807, None, None, 50)),
        ("benchmark_model_old.log", (249.684, 1.442, None, None, None, 50)),
        ("onnxruntime_perf_test.log", (58.8053, None, 58.7108, 59.9845, 61.9517, 1000)),
    ],
)
def test_the_figures_of_every_tool_are_read(sample, found):
    log = board.parse((SAMPLES / sample).read_text())
    for value, expected in zip(log, found, strict=True):
        assert value == (expected if expected is None else pytest.approx(expected))


def test_what_failed_has_no_figures():
    with pytest.raises(ValueError, match="no line with the mean"):
        board.parse("ERROR: Failed to load model.\ncount=1 curr=1357602\n")


def test_two_calls_less_one_is_a_call():
    assert board.call_latency({"call1": 5.0, "call2": 7.0}) == 3.0
    assert board.call_latency({"call1": 5.0, "call2": 11.0}) == 0.0  # noise alone


def make_folder(folder, logs):
    subjects = [*map(board.of_call, board.CALLS), LAYER, STEM]
    files = {f"{number}.tflite": subject for number, subject in enumerate(subjects)}
    board.write_manifest(folder, files)
    for number, text in logs.items():
        (folder / f"{number}.tflite.log").write_text(text)
    return folder


LOGS = {
    0: RUN.format(30, 30),
    1: RUN.format("4e+01", 40),
    2: RUN.format("1.24027e+06", 1239807),
    3: RUN.format(500, 480),
}


def test_the_manifest_says_what_each_file_is(tmp_path):
    make_folder(tmp_path, {})
    assert list(board.read_manifest(tmp_path).values())[2:] == [LAYER, STEM]


def test_lines_are_what_was_run_without_the_call(tmp_path):
    found = board.rows(make_folder(tmp_path, LOGS), "litert", "2.16", "board", 2)
    assert [row.subject for row in found] == [LAYER, STEM]
    layer, stem = found
    assert layer.latency_ms == pytest.approx(1240.27 - 0.02)
    assert (stem.latency_ms, stem.p50_ms) == (pytest.approx(0.48), pytest.approx(0.46))
    assert (stem.std_ms, stem.p90_ms, stem.count) == (0.004, None, 50)
    table = tmp_path / "t.csv"
    for row in found:
        measured.append(table, row)
    assert measured.read(table) == found


def test_what_was_not_run_yet_is_left_out(tmp_path):
    logs = {number: LOGS[number] for number in (0, 1, 3)}
    found = board.rows(make_folder(tmp_path, logs), "litert", "2.16", "board", 2)
    assert [row.subject for row in found] == [STEM]


def test_errors_take_one_line(tmp_path):
    with pytest.raises(InputError, match=r"manifest\.csv: is no manifest .*--export_only"):
        board.rows(tmp_path, "litert", "2.16", "board", 1)
    with pytest.raises(InputError, match="call1 and call2 were not run"):
        board.rows(make_folder(tmp_path, {3: LOGS[3]}), "litert", "2.16", "board", 1)
    make_folder(tmp_path, {2: "Segmentation fault\n"})
    with pytest.raises(InputError) as error:
        board.rows(tmp_path, "litert", "2.16", "board", 1)
    assert str(error.value) == (
        f"{tmp_path / '2.tflite.log'}: no line with the mean of the runs; "
        "delete it to run the file again"
    )
