"""Stages: skipped, resumed or refused by what they were made from."""

import dataclasses
import errno
import json
import os
import pathlib

import pytest

from qnas_jax.errors import InputError
from qnas_jax.run import artefacts
from qnas_jax.run import stage as stages
from qnas_jax.run.stage import Stage, check_made_from, is_finished, read_json


def files(folder):
    return {f.name: f.read_bytes() for f in folder.iterdir() if not f.name.startswith(".")}


MADE_FROM = {"images": 8, "lut": {"bits": (4, 8), "seed": 0}, "teacher": "0a1b"}


DAMAGES = {
    "cut": (b'{"networks": {"teach', "Unterminated string starting at: line 1 column 15 (char 14)"),
    "empty": (b"", "Expecting value: line 1 column 1 (char 0)"),
    "text": (b"no json", "Expecting value: line 1 column 1 (char 0)"),
    "bytes": (b'"\xff"', "'utf-8' codec can't decode byte 0xff in position 1: invalid start byte"),
}


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "begun"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_in_one_line_with_what_to_delete(tmp_path, damage, finished):
    content, reason = DAMAGES[damage]
    path, stage = tmp_path / "latency.json", Stage(tmp_path, MADE_FROM)
    stage.begin()
    path.write_bytes(content)
    if finished:
        stage.finish()
    with pytest.raises(InputError) as error:
        read_json(path)
    what = "it and made_from.json next to it" if finished else "it"
    again = "repeat the command of the run that wrote it"
    message = f"cannot be read ({reason}); delete {what}, then {again}"
    assert str(error.value) == f"{path}: {message}"
    path.unlink()
    if finished:
        (tmp_path / "made_from.json").unlink()
    assert not Stage(tmp_path, MADE_FROM).done, "so that it writes the file again"


def test_a_missing_file_is_named_in_one_line(tmp_path):
    path, again = tmp_path / "lut.json", "repeat the command of the run that wrote it"

    def refusal():
        with pytest.raises(InputError) as error:
            read_json(path)
        return str(error.value)

    assert refusal() == f"{path}: is missing; {again}"
    stage = Stage(tmp_path, MADE_FROM)
    assert refusal() == f"{path}: is missing; {again}"
    stage.finish()
    assert refusal() == f"{path}: is missing; delete made_from.json next to it, then {again}"


def test_a_stage_is_resumed_until_it_is_finished_and_then_skipped(tmp_path):
    folder = tmp_path / "lut"
    first = Stage(folder, MADE_FROM)
    first.begin()
    (folder / "lut.npz").write_text("rows")
    assert not first.done
    assert not Stage(folder, MADE_FROM).done, "it was stopped before its end"
    resumed = Stage(folder, {**MADE_FROM, "lut": {"seed": 0, "bits": [4, 8]}})
    assert resumed.hash == first.hash == artefacts.digest(MADE_FROM)
    resumed.begin()
    resumed.finish()
    assert resumed.done
    again = Stage(folder, MADE_FROM)
    assert again.done
    assert again.seconds == pytest.approx(resumed.seconds, abs=1e-3)
    before = files(folder)
    again.finish()
    assert files(folder) == before


def test_the_seconds_of_a_stage_leave_out_its_stops(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(stages.time, "time", lambda: now[0])
    Stage(tmp_path, MADE_FROM).begin()
    (tmp_path / "half").write_text("rows")
    os.utime(tmp_path / "half", (1004.0, 1004.0))  # then it was killed
    now[0] = 2000.0
    resumed = Stage(tmp_path, MADE_FROM)
    resumed.begin()
    now[0] = 2003.25
    resumed.finish()
    assert resumed.seconds == Stage(tmp_path, MADE_FROM).seconds == 7.25


def test_the_seconds_of_a_stage_are_the_same_when_they_are_read_again(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stages.time, "time", lambda: now[0])
    first = Stage(tmp_path, MADE_FROM)
    first.begin()
    (tmp_path / "lut.npz").write_text("rows")
    now[0] = 7.9496  # rounds to 7.9, but 7.950 to 8.0
    first.finish()
    assert round(first.seconds, 1) == round(Stage(tmp_path, MADE_FROM).seconds, 1)


def test_a_stage_of_which_nothing_came_may_be_made_from_anything(tmp_path):
    Stage(tmp_path, MADE_FROM).begin()
    (tmp_path / "checkpoint").mkdir()
    changed = Stage(tmp_path, {**MADE_FROM, "images": 4})
    assert not changed.done
    changed.begin()
    (tmp_path / "lut.npz").write_text("rows")
    changed.finish()
    with pytest.raises(InputError, match="images: 4, now 8"):
        Stage(tmp_path, MADE_FROM)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"images": 4}, "images: 8, now 4"),
        ({"lut": {"bits": (4, 6), "seed": 0}}, "lut.bits: [4, 8], now [4, 6]"),
        ({"lut": {"bits": (4, 8), "seed": 1}}, "lut.seed: 0, now 1"),
        ({"teacher": "ffff"}, "teacher: 0a1b, now ffff"),
        ({"later": 3}, "later: None, now 3"),
        ({"lut": {"bits": (4, 8)}}, "lut.seed: 0, now None"),
    ],
)
def test_a_stage_made_from_something_else_is_refused_and_stays_as_it_is(
    tmp_path, change, difference
):
    folder = tmp_path / "lut"
    Stage(folder, MADE_FROM).finish()
    (folder / "lut.npz").write_bytes(b"hours of work")
    before = files(folder)
    with pytest.raises(InputError) as error:
        Stage(folder, {**MADE_FROM, **change})
    assert str(error.value) == (
        f"{folder} was made from other settings ({difference}); "
        f"take another --workdir, or delete {folder}"
    )
    assert files(folder) == before
    assert Stage(folder, MADE_FROM).done


def test_who_only_asks_for_a_stage_writes_nothing(tmp_path):
    folder = tmp_path / "lut"
    assert not Stage(folder, MADE_FROM).done
    assert not folder.exists()
    Stage(folder, MADE_FROM).begin()
    (folder / "half").write_text("rows")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    for made_from in (MADE_FROM, {**MADE_FROM, "images": 8.0}):
        assert not Stage(folder, made_from).done
    found = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert found == before


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "begun"])
def test_equal_settings_are_the_same_stage_however_they_are_spelled(tmp_path, finished):
    spelled = [{"scale": (1, 2), "lr": 1e0}, {"scale": [1.0, 2.0], "lr": 1}]
    assert len({Stage(tmp_path, one).hash for one in spelled}) == 1
    Stage(tmp_path, spelled[0]).begin()
    (tmp_path / "half").write_text("rows")
    mark = json.loads((tmp_path / "made_from.json").read_text())
    # As a version wrote it that hashed the text.
    older = {**mark, "hash": "0123456789ab", "done": finished}
    for one in spelled:
        artefacts.write_json(tmp_path / "made_from.json", older)
        stage = Stage(tmp_path, one)
        assert (stage.done, stage.hash) == (finished, "0123456789ab"), "later stages know it"
        stage.begin()
        stage.finish()
        assert json.loads((tmp_path / "made_from.json").read_text())["hash"] == "0123456789ab"
    with pytest.raises(InputError, match=r"scale: \[1.*, 2.*\], now \[1, 2\.5\]"):
        Stage(tmp_path, {"scale": (1, 2.5), "lr": 1})


@dataclasses.dataclass(slots=True)
class Section:
    steps: int
    scale: tuple[float, float] = (0.5, 2.0)
    warmup: int = 0


def test_a_field_that_came_later_counts_as_its_default_in_older_runs(tmp_path):
    Stage(tmp_path, {"train": {"steps": 3, "scale": [0.5, 2]}}).begin()
    (tmp_path / "half").write_text("rows")
    check_made_from(tmp_path, {"train": Section(3)})
    for section, difference in (
        (Section(3, warmup=1), "train.warmup: 0, now 1"),
        (Section(4), "train.steps: 3, now 4"),
    ):
        for ask in (Stage, check_made_from):
            with pytest.raises(InputError, match=difference):
                ask(tmp_path, {"train": section})
    with pytest.raises(InputError, match="seed: None, now 0"):  # no field of a section
        Stage(tmp_path, {"train": Section(3), "seed": 0})
    Stage(tmp_path, {"train": Section(3)}).begin()
    mark = json.loads((tmp_path / "made_from.json").read_text())
    assert mark["made_from"]["train"]["warmup"] == 0, "from now on it is known"


def test_a_single_setting_that_came_later_counts_as_what_older_runs_did(tmp_path):
    """As the marks of a LUT and of a search have them: values, not sections."""
    Stage(tmp_path, {"lut": "0a1b", "steps": 3}).begin()
    (tmp_path / "half").write_text("rows")
    older = stages.defaults(Section)
    assert older == {"scale": (0.5, 2.0), "warmup": 0}, "what has no default is never filled in"
    now = {"lut": "0a1b", "steps": 3, "scale": (0.5, 2), "warmup": 0}
    assert Stage(tmp_path, now, older).hash == Stage(tmp_path, {"lut": "0a1b", "steps": 3}).hash
    for change, difference in (
        ({"warmup": 1}, "warmup: 0, now 1"),
        ({"steps": 4}, "steps: 3, now 4"),
        ({"other": 1}, "other: None, now 1"),
    ):
        with pytest.raises(InputError, match=difference):
            Stage(tmp_path, {**now, **change}, older)
    Stage(tmp_path, now, older).begin()
    with pytest.raises(InputError, match="warmup: 0, now None"):  # known, so no longer filled in
        Stage(tmp_path, {"lut": "0a1b", "steps": 3, "scale": (0.5, 2)}, older)


def test_a_mark_that_the_system_does_not_give_is_no_stage_that_is_missing(tmp_path, monkeypatch):
    """It would be made anew, into the folder of another."""
    Stage(tmp_path, MADE_FROM).begin()
    (tmp_path / "half").write_text("rows")

    def stale(_):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(pathlib.Path, "read_bytes", stale)
    for ask in (lambda: Stage(tmp_path, MADE_FROM), lambda: is_finished(tmp_path)):
        with pytest.raises(InputError, match=r"made_from\.json: cannot be read .*; try again"):
            ask()


def test_a_file_in_the_place_of_a_stage_is_named(tmp_path):
    (tmp_path / "lut").touch()
    with pytest.raises(InputError, match="lut: is a file, must be a folder"):
        Stage(tmp_path / "lut", MADE_FROM)


def test_some_settings_of_a_stage_are_held_against_others(tmp_path):
    with pytest.raises(
        InputError,
        match=r"made_from\.json: is missing; repeat the command of the run that wrote it",
    ):
        check_made_from(tmp_path, {"images": 8})
    Stage(tmp_path, MADE_FROM).begin()
    before = files(tmp_path)
    check_made_from(tmp_path, {"lut": {"bits": (4, 8), "seed": 0}, "images": 8})
    for settings, difference in (
        ({"images": 4}, "images: 8, now 4"),
        ({"images": 8, "lut": {"bits": (4, 6), "seed": 0}}, "lut.bits: [4, 8], now [4, 6]"),
        ({"later": 3}, "later: None, now 3"),
    ):
        with pytest.raises(InputError) as error:
            check_made_from(tmp_path, settings)
        message = f"was made from other settings ({difference}); give the --config of its run"
        assert str(error.value) == f"{tmp_path} {message}"
    assert files(tmp_path) == before


WRONG_TIME = '{"hash": "a", "made_from": {}, "done": false, "seconds": 0, "began": "now"}'


@pytest.mark.parametrize(
    "content", ["", '{"hash":', "no json", "{}", "[]", "null", "\udcff", WRONG_TIME]
)
def test_a_damaged_mark_is_named_in_one_line(tmp_path, content):
    (tmp_path / "made_from.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError) as error:
        Stage(tmp_path, MADE_FROM)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'made_from.json'}: is damaged (")
    assert message.endswith(f"; delete {tmp_path}")
    assert "\n" not in message
