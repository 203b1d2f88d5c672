"""Folders as macOS, Windows and file servers leave them."""

import pytest

from qnas_jax.bwnas import finished
from qnas_jax.errors import InputError
from qnas_jax.export import runtimes
from qnas_jax.profiling import profile
from qnas_jax.run import artefacts
from qnas_jax.run.listing import listed
from qnas_jax.run.stage import Stage

OF_SYSTEMS = ("._a.txt", ".DS_Store", ".hidden.txt", "Thumbs.db", "desktop.ini")
FOLDERS_OF_SYSTEMS = ("@eaDir", "lost+found", ".Trash-1000", "__MACOSX", "#recycle")


def litter(folder):
    """Leaves in a folder what systems leave; files of ours lie in some of it."""
    for name in OF_SYSTEMS:
        (folder / name).write_bytes(b"\x00\x05\x16\x07")
    for name in FOLDERS_OF_SYSTEMS:
        (folder / name).mkdir()
        (folder / name / "a.txt").write_text("not ours")


def test_what_systems_leave_is_not_listed(tmp_path):
    root = tmp_path / ".cache"  # the folder itself may be hidden
    (root / "deep").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "deep/c.txt"):
        (root / name).write_text("ours")
    litter(root)
    litter(root / "deep")
    assert [p.name for p in listed(root, "*")] == ["a.txt", "b.txt", "deep"]
    assert [p.name for p in listed(root, "*/*.txt")] == ["c.txt"]
    ours = [root / name for name in ("a.txt", "b.txt", "deep", "deep/c.txt")]
    assert listed(root, "**/*") == ours
    assert listed(root / "none", "*") == []


def test_a_stage_that_holds_nothing_of_its_own_may_be_made_from_anything(tmp_path):
    Stage(tmp_path, {"seed": 0}).finish()
    litter(tmp_path)
    stage = Stage(tmp_path, {"seed": 1})
    assert not stage.done, "nothing came of it"
    stage.begin()
    artefacts.write(tmp_path / "ours", "x")
    with pytest.raises(InputError, match="seed: 1, now 2"):
        Stage(tmp_path, {"seed": 2})


def test_folders_of_systems_hold_no_retrained_subnet(tmp_path):
    for name in ("k3e6.w8a8", "._k3e6.w8a8", "@eaDir"):
        artefacts.write_json(tmp_path / "retrain" / name / "metrics.json", {"subnet": name})
    assert finished.subnets(tmp_path) == ["k3e6.w8a8"]


def test_what_systems_leave_of_logs_is_no_log_of_a_board(tmp_path, monkeypatch):
    monkeypatch.setattr(profile.synthetic, "calls", dict)
    (tmp_path / "._0001_stem.tflite.log").write_bytes(b"\x00\x05\x16\x07")
    profile.write_files(tmp_path, {}, runtimes.onnxruntime())
    (tmp_path / "0001_stem.tflite.log").write_text("count=1")
    with pytest.raises(InputError, match="holds logs of other files"):
        profile.write_files(tmp_path, {}, runtimes.onnxruntime())
