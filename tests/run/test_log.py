import concurrent.futures
import errno
import json
import logging
import struct
import threading

import pytest
from tensorboardX.proto.event_pb2 import Event

from qnas_jax.run import artefacts, events, log


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (45.4, "45s"),
        (59.6, "1m00s"),
        (200.0, "3m20s"),
        (3599.4, "59m59s"),
        (3599.6, "1h00m"),
        (7500.0, "2h05m"),
        (360_000.0, "100h00m"),
    ],
)
def test_a_duration_is_written_as_people_read_it(seconds, text):
    assert log.duration(seconds) == text


def lines_of(monkeypatch, caplog, progress, reports):
    """The lines that reports (time, done, text) give."""
    for now, done, text in reports:
        monkeypatch.setattr(log.time, "monotonic", lambda now=now: now)
        with caplog.at_level(logging.INFO, "qnas_jax.run.log"):
            progress.show(done, text)
    return [record.getMessage().rstrip() for record in caplog.records]


def test_progress_tells_share_rate_and_what_is_left(monkeypatch, caplog):
    monkeypatch.setattr(log.time, "monotonic", lambda: 1000.0)
    progress = log.Progress("lut", 20)
    reports = [(1060.0, 1, ""), (1070.0, 6, "nsr 0.5"), (1098.0, 20, "")]
    assert lines_of(monkeypatch, caplog, progress, reports) == [
        "lut 1/20 (5%)",  # the first step was compiled, so its speed is not that of the rest
        "lut 6/20 (30%) 0.5/s ETA 28s nsr 0.5",
        "lut 20/20 (100%) 0.5/s ETA 0s",
    ]


def test_progress_keeps_quiet_between_lines_but_tells_the_end(monkeypatch, caplog):
    monkeypatch.setattr(log.time, "monotonic", lambda: 1000.0)
    progress = log.Progress("lut", 80)
    reports = [(1000.0 + 0.1 * i, i, "") for i in range(1, 81)]
    lines = lines_of(monkeypatch, caplog, progress, reports)
    assert [line.split()[1] for line in lines] == ["50/80", "80/80"]
    assert lines[0] == "lut 50/80 (62%) 10/s ETA 3s"


def test_progress_of_resumed_work_counts_what_was_done_before_for_nothing(monkeypatch, caplog):
    monkeypatch.setattr(log.time, "monotonic", lambda: 1000.0)
    progress = log.Progress("teacher", 100, done=80)
    lines = lines_of(monkeypatch, caplog, progress, [(1001.0, 81, ""), (1011.0, 91, "")])
    assert lines == ["teacher 91/100 (91%) 1/s ETA 9s"]


def test_what_several_threads_add_is_the_sum_and_never_beyond_the_end(monkeypatch, caplog):
    monkeypatch.setattr(log, "LINE_SECONDS", 0.0)
    progress = log.Progress("lut", 100)
    with (
        caplog.at_level(logging.INFO, "qnas_jax.run.log"),
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        list(pool.map(progress.add, [0.25] * 404))
    done = [record.getMessage().split()[1] for record in caplog.records]
    assert done == [f"{min(0.25 * i, 100):g}/100" for i in range(1, 405)]


def events_of(folder):
    """The scalars (tag, step, value) of TensorBoard's files, read record by record."""
    found = []
    for file in sorted(folder.glob("events.*")):
        content, place = file.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + length])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            place += 12 + length + 4  # a checksum behind the length, another behind the data
    return found


def test_metrics_are_lines_of_json_and_tensorboard_events(tmp_path):
    with log.Metrics(tmp_path, "teacher") as metrics:
        metrics.write(1, {"loss": 0.5, "lr": 0.25})
        metrics.write(2, {"loss": 4.0})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert list(map(json.loads, lines)) == [
        {"stage": "teacher", "step": 1, "loss": 0.5, "lr": 0.25},
        {"stage": "teacher", "step": 2, "loss": 4.0},
    ]
    assert sorted(events_of(tmp_path)) == [
        ("teacher/loss", 1, 0.5),
        ("teacher/loss", 2, 4.0),
        ("teacher/lr", 1, 0.25),
    ]


def test_the_stages_of_a_run_write_into_one_file_behind_each_other(tmp_path):
    for stage in ("teacher", "retrain/k3e6.w8a8", "teacher"):
        with log.Metrics(tmp_path, stage) as metrics:
            metrics.write(3, {"loss": 1.0})
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [line["stage"] for line in lines] == ["teacher", "retrain/k3e6.w8a8", "teacher"]


def test_a_stage_that_was_stopped_before_its_first_line_leaves_no_empty_one(tmp_path):
    for steps in ((), (1,), (), (2,)):
        record(tmp_path, "teacher", steps, min(steps, default=2) - 1)
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines] == [1, 2]


def test_a_line_of_metrics_is_on_disk_before_the_stage_ends(tmp_path):
    with log.Metrics(tmp_path, "teacher") as metrics:
        metrics.write(7, {"loss": 1.0})
        assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 7


def steps_of(folder, stage):
    """The steps that TensorBoard shows and those in `metrics.jsonl`, in the order of the files."""
    shown = [step for tag, step, _ in events_of(folder) if tag == f"{stage}/loss"]
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return shown, [line["step"] for line in lines if line["stage"] == stage]


def record(folder, stage, steps, first):
    """Records steps as a stage that begins, or goes on, after step `first`."""
    with log.Metrics(folder, stage) as metrics:
        metrics.resume(first)
        for step in steps:
            metrics.write(step, {"loss": float(step), "lr": 0.1})


@pytest.mark.parametrize("torn", [True, False])
def test_steps_that_were_lost_are_in_no_file_once_a_stage_is_resumed(tmp_path, torn):
    """A run that was killed after step 7, perhaps within a line, and went on from step 4."""
    record(tmp_path, "teacher", range(1, 11), 0)
    record(tmp_path, "supernet", range(1, 8), 0)
    record(tmp_path, "retrain/supernet", range(1, 6), 0)
    if torn:
        (*_, last) = sorted(tmp_path.glob("events.*.supernet"))
        for file in (last, tmp_path / "metrics.jsonl"):
            with file.open("ab") as out:
                out.write(b'{"stage": "supernet", "step": 8, "lo')
    record(tmp_path, "teacher", (), 10)  # finished: all of it stays
    record(tmp_path, "supernet", range(5, 10), 4)
    for stage, steps in (("teacher", 11), ("supernet", 10), ("retrain/supernet", 6)):
        assert steps_of(tmp_path, stage) == (list(range(1, steps)), list(range(1, steps)))
    assert not list(tmp_path.glob(".*")), "nothing half written is left"


def test_a_stage_that_is_begun_anew_leaves_nothing_of_the_one_before(tmp_path):
    record(tmp_path, "teacher", range(1, 8), 0)
    record(tmp_path, "teacher", range(1, 4), 0)
    assert steps_of(tmp_path, "teacher") == ([1, 2, 3], [1, 2, 3])


def test_nothing_is_rewritten_where_nothing_was_lost(tmp_path):
    record(tmp_path, "teacher", range(1, 4), 0)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    record(tmp_path, "teacher", (), 3)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("at", ["events", "metrics"])
def test_a_kill_while_steps_are_forgotten_leaves_none_of_them(tmp_path, monkeypatch, at):
    write = artefacts.write

    def killed(path, content):
        if path.name.startswith(at):
            raise KeyboardInterrupt
        write(path, content)

    record(tmp_path, "teacher", range(1, 8), 0)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(artefacts, "write", killed)
        record(tmp_path, "teacher", range(5, 8), 4)
    record(tmp_path, "teacher", range(5, 8), 4)
    assert steps_of(tmp_path, "teacher") == (list(range(1, 8)), list(range(1, 8)))


def test_of_several_processes_one_forgets_and_writes(tmp_path):
    record(tmp_path, "supernet", range(1, 8), 0)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with log.Metrics(tmp_path, "supernet", writes=False) as metrics:
        metrics.resume(4)
        metrics.write(5, {"loss": 1.0})
        metrics.sync()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_two_files_of_one_second_are_both_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(events.time, "time", lambda: 1_700_000_000.5)
    record(tmp_path, "teacher", (1,), 0)
    record(tmp_path, "teacher", (2,), 1)
    assert steps_of(tmp_path, "teacher") == ([1, 2], [1, 2])


def test_a_long_subnet_and_a_long_host_give_a_name_that_file_systems_take(tmp_path, monkeypatch):
    monkeypatch.setattr(events.platform, "node", lambda: "h" * 64)
    stages = [f"retrain/{'k3e6w4a8-' * 21}k{number}e6w4a8" for number in (3, 5)]
    for stage in stages:
        record(tmp_path, stage, (1,), 0)
    assert len(list(tmp_path.glob("events.*"))) == 2
    assert sorted(tag for tag, *_ in events_of(tmp_path) if tag.endswith("loss")) == [
        f"{stage}/loss" for stage in stages
    ]


def test_a_full_disk_ends_the_training_instead_of_holding_it_up(tmp_path, monkeypatch):
    """A thread that wrote the events would die of it, and a queue to it would fill up."""

    def sync(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = threading.active_count()
    with log.Metrics(tmp_path, "teacher") as metrics:
        metrics.write(1, {"loss": 1.0})
        assert threading.active_count() == before
        monkeypatch.setattr(log.disk.os, "fsync", sync)
        with pytest.raises(OSError) as error:
            metrics.sync()
    assert error.value.filename == str(tmp_path / "metrics.jsonl")


def test_metrics_are_read_by_step_and_the_latest_counts(tmp_path):
    """A run that was killed within a line, after step 20, and went on from step 10."""
    assert log.read_metrics(tmp_path, "supernet") == {}
    with log.Metrics(tmp_path, "supernet") as metrics:
        metrics.write(10, {"nsr": 3.0})
        metrics.write(20, {"nsr": 2.5})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"stage": "supernet", "\xff')
    for stage, first in (("supernet", 1.0), ("retrain/supernet", 7.0)):
        with log.Metrics(tmp_path, stage) as metrics:
            metrics.resume(10)
            for step in (20, 30):
                metrics.write(step, {"nsr": first * step, "other": 0.0})
    found = log.read_metrics(tmp_path, "supernet")
    assert found == {
        10: {"nsr": 3.0},
        20: {"nsr": 20.0, "other": 0.0},
        30: {"nsr": 30.0, "other": 0.0},
    }
