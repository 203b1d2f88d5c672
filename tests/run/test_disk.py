"""Errors of the system are told from damage; locks and syncs are done without where they must."""

import ast
import errno
import os
import pathlib
import runpy
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from qnas_jax.bwnas.lut import populate, table
from qnas_jax.data import files
from qnas_jax.errors import InputError
from qnas_jax.export import runtimes
from qnas_jax.export.onnx import run as onnx_run
from qnas_jax.hardware import board, measured
from qnas_jax.profiling import audit
from qnas_jax.run import artefacts, disk, log, matrix
from qnas_jax.run.stage import Stage, is_finished, read_json
from qnas_jax.search import front
from qnas_jax.stages import dry_run, experiment
from qnas_jax.train import checkpoint

ROOT = pathlib.Path(__file__).parents[2]
WAYS_OUT = {
    errno.ESTALE: "try again",
    errno.EIO: "try again",
    errno.ENOMEM: "try again",
    errno.EACCES: "let this user read it",
}
# As TensorStore has it: words, a number sometimes, and the file in the middle.
TENSORSTORE = (
    'ABORTED: Error opening "zarr" driver: Error reading local file "/runs/a/manifest.ocdbt": '
    "Failed to open: Stale file handle [tensorstore_spec='{}']"
)


def failing(number, *_, **__):
    raise OSError(number, os.strerror(number))  # as a read of an open file fails: without a name


def read_conditions(path):
    audit.read(path, audit.Conditions("r", "1", "d", 1, 8, 8, 0, ""))


def read_image(path):
    files.opened(path, ("RGB",))


READERS = {
    "state.npz": lambda path: checkpoint.read_arrays(path, {}),
    "lut.npz": table.load,
    "noise.npy": lambda path: populate._read_noise(path, 3),
    "front.csv": front.read,
    "metrics.json": read_json,
    "made_from.json": lambda path: Stage(path.parent, {}),
    "made_from.json ": lambda path: is_finished(path.parent),
    "metrics.jsonl": lambda path: log.read_metrics(path.parent, "teacher"),
    "latencies.csv": measured.read,
    "manifest.csv": lambda path: board.read_manifest(path.parent),
    "audit.csv": read_conditions,
    "image.png": read_image,
    "model.onnx": onnx_run.session,
}


@pytest.mark.parametrize("number", WAYS_OUT, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", READERS)
def test_a_file_that_the_system_does_not_give_is_not_taken_for_damaged(
    tmp_path, monkeypatch, name, number
):
    path = tmp_path / name.strip()
    path.write_bytes(b"whole, for all that is known")
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda _: failing(number))
    with pytest.raises(InputError) as error:
        READERS[name](path)
    told = f"{path}: cannot be read ({os.strerror(number)}); {WAYS_OUT[number]}"
    assert str(error.value) == told


@pytest.mark.parametrize("name", sorted(READERS.keys() - {"metrics.jsonl"}))
def test_what_was_read_and_cannot_be_parsed_is_damaged(tmp_path, name):
    path = tmp_path / name.strip()
    path.write_bytes(b"\xff\xfe\0 no such thing")
    with pytest.raises(InputError) as error:
        READERS[name](path)
    assert str(error.value).startswith((f"{path}: ", f"{path}, line 1: "))
    assert "try again" not in str(error.value)


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_whatever_byte_is_wrong_takes_one_line(tmp_path, kind):
    """The libraries that parse raise many kinds of errors."""
    path, arrays = tmp_path / f"file.{kind}", {"a": np.arange(3), "b": np.zeros((2, 1), np.int8)}
    np.savez(path, allow_pickle=False, **arrays) if kind == "npz" else np.save(path, np.zeros(3))
    whole, errors = path.read_bytes(), 0
    for place in range(len(whole)):
        for wrong in (0x5B, 0xFF):
            path.write_bytes(whole[:place] + bytes([wrong]) + whole[place + 1 :])
            try:
                if kind == "npy":
                    populate._read_noise(path, 3)
                else:
                    checkpoint.read_arrays(path, arrays)
            except InputError as error:
                errors += 1
                assert str(error).startswith(f"{path}: ")
    assert errors > len(whole) / 10


def test_a_full_disk_is_not_taken_for_a_network_that_does_not_run(tmp_path, monkeypatch):
    config = runpy.run_path(str(ROOT / "configs" / "smoke.py"))["get_config"]()
    problem = experiment.prepare(config)[1]
    monkeypatch.setattr(dry_run.probes, "network", lambda *_: None)
    monkeypatch.setattr(dry_run.Runtime, "write", lambda *_: failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        dry_run.dry_run(problem, ((8, 8),), (32, 64, 3), runtimes.named("onnxruntime"))


def test_only_one_module_reads_files():
    """All others get their content from it, or from the system's own folders and their own."""
    found = set()
    for file in (ROOT / "qnas_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("read_text", "read_bytes"):
                found.add(file.relative_to(ROOT / "qnas_jax").as_posix())
    # Programs read their own docstrings, XLA a file of flags that a user names, and TFDS's package
    # has the names of ImageNet's classes.
    own = {"__main__.py", "run/platform.py", "data/tfds/archives.py"}
    assert found == own | {"run/disk.py", "kernels/native.py", "export/runtimes.py"}


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(disk.Missing, match=r"none\.csv: no such file"):
        disk.read(tmp_path / "none.csv")
    with pytest.raises(InputError, match="is a folder, must be a file"):
        disk.read(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(disk.Missing, match="file/below: no such file"):
        disk.read(tmp_path / "file" / "below")


def test_a_fault_is_found_in_what_libraries_make_of_it():
    stale = OSError(errno.ESTALE, "Stale file handle", "/a/b")
    assert disk.fault(stale) is stale
    wrapped = ValueError("cannot restore")
    wrapped.__cause__ = RuntimeError("while reading")
    wrapped.__cause__.__context__ = stale
    assert disk.fault(wrapped) is stale
    for text in (TENSORSTORE, "x '/runs/a/manifest.ocdbt' os_error_code='116'"):
        found = disk.fault(ValueError(text))
        assert found is not None
        assert (found.errno, found.filename) == (errno.ESTALE, "/runs/a/manifest.ocdbt")
    damages = [OSError("image file is truncated"), FileNotFoundError(errno.ENOENT, "gone")]
    for damage in (*damages, ValueError("INVALID_ARGUMENT: not a manifest"), None):
        assert disk.fault(damage) is None


@pytest.mark.parametrize("folder", [False, True])
def test_who_reads_by_himself_is_believed_only_where_all_can_be_read(tmp_path, monkeypatch, folder):
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "d"
    path.write_bytes(b"some")
    asked = tmp_path if folder else path
    disk.check_readable(asked, ValueError("damaged"))
    for error, file in ((ValueError(TENSORSTORE), "ocdbt"), (OSError(5, "I/O"), str(asked))):
        with pytest.raises(InputError, match=rf"{file}: cannot be read .*; try again"):
            disk.check_readable(asked, error)
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda _: failing(errno.EIO))
    with pytest.raises(InputError, match=r"/a/d: cannot be read \(Input/output error\); try again"):
        disk.check_readable(asked, ValueError("damaged"))


def test_an_error_without_a_file_gets_its_name(tmp_path):
    path = tmp_path / "file"
    for named, name in ((False, str(path)), (True, "other")):
        with pytest.raises(OSError) as error, disk.naming(path):
            failing(errno.EDQUOT) if not named else open("other/")
        assert error.value.filename.startswith(name)
    with pytest.raises(OSError) as error, disk.naming(path):
        raise OSError("of a library, no system's error")
    assert error.value.filename is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO], ids=errno.errorcode.get)
def test_a_write_that_fails_names_its_file_and_leaves_nothing(tmp_path, monkeypatch, number):
    path = tmp_path / "lut.json"
    path.write_text("old")
    monkeypatch.setattr(disk.os, "fsync", lambda _: failing(number))
    with pytest.raises(OSError) as error:
        artefacts.write_json(path, {"new": 1})
    assert (error.value.errno, error.value.filename) == (number, str(path))
    assert [f.name for f in tmp_path.iterdir()] == ["lut.json"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("number", disk.UNSUPPORTED, ids=errno.errorcode.get)
def test_a_file_system_without_syncs_and_locks_is_used_without(
    tmp_path, monkeypatch, caplog, number
):
    monkeypatch.setattr(disk.os, "fsync", lambda _: failing(number))
    monkeypatch.setattr(disk.fcntl, "flock", lambda *_: failing(number))
    artefacts.write(tmp_path / "file", "content")
    with disk.only_one(tmp_path):
        assert (tmp_path / "file").read_text() == "content"
    (record,) = caplog.records
    told = f"{tmp_path}: its file system has no locks ({os.strerror(number)}); "
    assert record.getMessage() == told + "start no second process in it"


def test_a_lock_that_fails_otherwise_names_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(disk.fcntl, "flock", lambda *_: failing(errno.EIO))
    with pytest.raises(OSError) as error, disk.only_one(tmp_path):
        pass
    assert error.value.filename == str(tmp_path / ".lock")


def test_a_folder_is_for_one_process_at_a_time(tmp_path):
    with disk.only_one(tmp_path):
        with pytest.raises(InputError, match="another process is at work in it"):
            with disk.only_one(tmp_path):
                pass
    with disk.only_one(tmp_path):
        pass


def test_a_folder_that_is_there_stays_whatever_renames_onto_it_do(tmp_path):
    for content in ("first", "second"):
        with artefacts.writing_folder(tmp_path / "calibration") as part:
            (part / "nodes.npy").write_text(content)
    assert [f.name for f in tmp_path.iterdir()] == ["calibration"]
    assert (tmp_path / "calibration" / "nodes.npy").read_text() == "first"


def test_rows_of_a_matrix_are_read_and_written_without_mapping_it(tmp_path, monkeypatch):
    file, values = tmp_path / "part" / "nodes.npy", np.arange(12, dtype=np.float32).reshape(4, 3)
    file.parent.mkdir()
    made = matrix.create(file, (4, 3))
    made[np.array([3, 0])], made[np.array([1, 2])] = values[[3, 0]], values[[1, 2]]
    np.testing.assert_array_equal(np.load(file), values)
    np.testing.assert_array_equal(matrix.load(file)[np.array([2, 0])], values[[2, 0]])
    whole = file.read_bytes()
    for content in (b"", whole[:20], whole[:-1], whole.replace(b"<f4", b"<f8")):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"part: cannot be read \(.*\); delete it, then"):
            matrix.load(file)
    file.write_bytes(whole)
    monkeypatch.setattr(matrix.np.lib.format, "read_magic", lambda _: failing(errno.ESTALE))
    with pytest.raises(InputError, match=r"nodes\.npy: cannot be read \(Stale.*\); try again"):
        matrix.load(file)


def test_an_image_is_damaged_only_where_it_was_read(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"image\.png: cannot be read \(.*\)$"):
        read_image(path)


FAULTY = """
import errno, os, sys
from qnas_jax.run import cli
def main():
    error = OSError(int(sys.argv[1]), os.strerror(int(sys.argv[1])))
    error.filename = "/runs/a/lut.npz"
    raise {}
cli.guarded(main)
"""


@pytest.mark.parametrize(
    ("number", "raised", "end"),
    [
        (errno.ENOSPC, "error", "; free some space and repeat the command"),
        (errno.EDQUOT, "error", "; free some space and repeat the command"),
        (errno.EDQUOT, "ValueError('saving') from error", "; free some space and repeat"),
        (errno.ESTALE, "error", "\n"),
    ],
)
def test_a_program_ends_with_the_file_and_what_the_system_said(number, raised, end):
    command = [sys.executable, "-c", FAULTY.format(raised), str(number)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: /runs/a/lut.npz: {os.strerror(number)}{end}")
    assert len(ended.stderr.splitlines()) == 1
