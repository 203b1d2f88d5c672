"""What tools print on boards becomes a table."""

import pathlib
import re

import pytest

from qnas_jax.errors import InputError
from qnas_jax.hardware import board, measured
from qnas_jax.hardware.measured import ProbeKey

SAMPLES = pathlib.Path(__file__).parent / "samples"
LAYER = ProbeKey("block1/layer0", "k3e6", 48, 96, 8, 16, 2, 1, 8, 8)
STEM = ProbeKey("stem", "", 96, 192, 3, 8, 1, 1, 8, 8)
WARM_UP = "count=10 first=9 curr=7 min=7 max=9 avg=7.5 std=1\n"
RUN = WARM_UP + "count=50 first=1 curr=1 min=1 max=1 avg={} std=4 p5=1 median={} p95=1\n"


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


RUNS = [
    ("count=100 curr=4(all same)", (0.004, 0.0, None, None, None, 100)),
    ("count=100 curr=4 (all same)\n", (0.004, 0.0, None, None, None, 100)),
    ("count=100 curr=4(all same) p5=4 median=4 p95=4\n", (0.004, 0.0, 0.004, None, None, 100)),
    ("curr=4 count=100(all same)\n", (0.004, 0.0, None, None, None, 100)),
    ("count=1 curr=5\n", (0.005, None, None, None, None, 1)),
    ("count=1 curr=5 p5=5 median=5 p95=5\n", (0.005, None, 0.005, None, None, 1)),
    ("curr=3 count=9 min=2 max=5 avg=3.5 std=1\n", (0.0035, 0.001, None, None, None, 9)),
    ("count=9 min=2 max=5 avg=1e+06 std=1000\n", (1000.0, 1.0, None, None, None, 9)),
    # a variance that was rounded below 0: what NaN is as an int64
    (f"count=9 min=2 max=3 avg=2.5 std={-(2**63)}\n", (0.0025, None, None, None, None, 9)),
    ("count=9 min=2 max=3 avg=2.5 std=nan\n", (0.0025, None, None, None, None, 9)),
    # no line end: the last figure may have lost digits
    ("count=9 min=2 max=30 avg=20.5 std=1", (0.0205, None, None, None, None, 9)),
    ("count=9 min=2 max=3 avg=2.5 std=1 p5=2 median=2", (0.0025, 0.001, None, None, None, 9)),
]
MARKS = ["", "INFO: ", "I0000 00:00:1714512345.123456   12345 benchmark_model.cc:123] "]
PROFILE = """Operator-wise Profiling Info for Regular Benchmark Runs:
Timings (microseconds): count=100 first=10 curr=8 min=8 max=10 avg=9 std=1
Memory (bytes): count=0
INFO: Timings (microseconds): count=100 curr=8(all same)
INFO:                cpu w/ 1 threads: count=100 curr=8(all same)
5 nodes observed
"""


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize(("line", "found"), RUNS)
def test_all_that_benchmark_model_prints_of_its_runs_is_read(line, found, mark):
    header = f"{mark}Running benchmark for at least 1 iterations and at least 0.5 seconds\n"
    for warm_up in (WARM_UP, "count=0\n", "count=1 curr=9\n", "count=3 curr=4(all same)\n"):
        text = f"STARTING!\n{header}{mark}{warm_up}\n{header}{mark}{line}"
        assert board.parse(text) == found
        assert board.parse(text.replace("\n", "\r\n")) == found
        if line.endswith("\n"):
            assert board.parse(f"{PROFILE}{text}\n{PROFILE}") == found


ORT = "Total inference requests: 5\nAverage inference time cost{}: {} ms\nRuns:5\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (ORT.format(" total", "98.961997"), (98.961997, None, None, None, None, 5)),
        (ORT.format("", "1e-05"), (1e-05, None, None, None, None, 5)),
        ("Total iterations:7\nAverage time cost:3.5 ms\n", (3.5, None, None, None, None, 7)),
        (
            ORT.format("", "2") + "P50 Latency is 0.002sec\nP90 Latency is 4e-03 sec\nP99 Laten",
            (2.0, None, 2.0, 4.0, None, 5),
        ),
        (ORT.format("", "2") + "P999 Latency: 1 s\nP90 Latency: 0.0", (2.0, *[None] * 4, 5)),
    ],
)
def test_all_that_onnxruntime_perf_test_prints_is_read(text, found):
    assert board.parse(text) == pytest.approx(found)


NONE = "no line with the mean of the runs"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", NONE),
        (
            "ERROR: Failed to load model.\ncount=1 curr=1357602\n",
            f"{NONE} (that of the warm-up alone)",
        ),
        (WARM_UP, f"{NONE} (that of the warm-up alone)"),
        (f"{WARM_UP}\nRunning benchmark for at least 50 itera", f"{NONE} (that of the warm-up"),
        (WARM_UP + PROFILE, f"{NONE} (that of the warm-up alone)"),
        (WARM_UP + "count=0\n", f"{NONE} (count=0)"),
        (WARM_UP + "count=0 p5=0 median=0 p95=0\n", f"{NONE} (count=0)"),
        (WARM_UP + "count=1", f"{NONE} (cut off"),
        (WARM_UP + "count=1 curr=5", f"{NONE} (cut off"),
        (WARM_UP + "count=100 curr=4", f"{NONE} (cut off"),
        (WARM_UP + "count=100 first=9 curr=4 min=4 max=9 avg=4.", f"{NONE} (cut off"),
        (WARM_UP + "count=9 min=2 max=3 avg=nan std=0\n", f"{NONE} (it is nan)"),
        (WARM_UP + "count=9 min=2 max=3 avg=inf std=0\n", f"{NONE} (it is inf)"),
        (WARM_UP + "count=9 min=2 max=3 avg=-2 std=0\n", f"{NONE} (it is -2)"),
        (RUN.format(3, 3) + "ERROR: Benchmarking failed.\n", "the tool says that it failed"),
        (RUN.format(3, 3) * 2, "has the figures of several measurements"),
        (RUN.format(3, 3) + WARM_UP, "has the figures of several measurements"),
        (ORT.format(" total", "-nan"), f"{NONE} (it is -nan)"),
        (ORT.format(" total", "inf"), f"{NONE} (it is inf)"),
        (ORT.format("", 2) * 2, "has the figures of several measurements"),
        (ORT.format("", "2.5").partition(" ms")[0], NONE),
    ],
)
def test_what_has_no_figures_of_the_runs_is_refused(text, reason):
    with pytest.raises(ValueError, match="^" + re.escape(reason)):
        board.parse(text)


def test_two_calls_less_one_is_a_call():
    assert board.call_latency({"call1": 5.0, "call2": 7.0}) == 3.0
    assert board.call_latency({"call1": 5.0, "call2": 11.0}) == 0.0  # noise alone


def make_folder(folder, logs):
    probes = [*map(board.of_call, board.CALLS), LAYER, STEM]
    files = {f"{number}.tflite": probe for number, probe in enumerate(probes)}
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
    found, refused = board.rows(make_folder(tmp_path, LOGS), "litert", "2.16", "board", 2)
    assert not refused
    assert [row.probe for row in found] == [LAYER, STEM]
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
    found, _ = board.rows(make_folder(tmp_path, logs), "litert", "2.16", "board", 2)
    assert [row.probe for row in found] == [STEM]


def test_a_log_without_figures_does_not_stop_the_others(tmp_path):
    make_folder(tmp_path, {**LOGS, 2: WARM_UP})
    found, refused = board.rows(tmp_path, "litert", "2.16", "board", 2)
    assert [row.probe for row in found] == [STEM]
    log = tmp_path / "2.tflite.log"
    reason = "no line with the mean of the runs (that of the warm-up alone)"
    assert refused == [f"{log}: {reason}; delete it to run the file again"]
    log.unlink()
    log.mkdir()  # an error of the system, not of the log
    found, refused = board.rows(tmp_path, "litert", "2.16", "board", 2)
    assert [row.probe for row in found] == [STEM]
    assert refused == [f"{log}: is a folder, must be a file"]


def test_a_manifest_that_a_spreadsheet_has_saved_is_read(tmp_path):
    path = make_folder(tmp_path, {}) / board.MANIFEST
    before = board.read_manifest(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b",\r\n") + b",,\r\n\r\n")
    assert board.read_manifest(tmp_path) == before


def test_errors_take_one_line(tmp_path):
    for content, state in ((None, "no such file"), ("a,b\nc", "is no manifest")):
        if content:
            (tmp_path / "manifest.csv").write_text(content)
        with pytest.raises(InputError, match=rf"manifest\.csv: {state}.*--export_only writes one"):
            board.rows(tmp_path, "litert", "2.16", "board", 1)
    with pytest.raises(InputError, match="call1 and call2 were not run"):
        board.rows(make_folder(tmp_path, {3: LOGS[3]}), "litert", "2.16", "board", 1)
    make_folder(tmp_path, {**LOGS, 1: "Segmentation fault\n"})
    with pytest.raises(InputError) as error:
        board.rows(tmp_path, "litert", "2.16", "board", 1)
    assert str(error.value) == (
        f"{tmp_path / '1.tflite.log'}: no line with the mean of the runs; "
        "delete it to run the file again"
    )
