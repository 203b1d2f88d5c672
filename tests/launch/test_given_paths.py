"""Paths that flags and settings name: homes are filled in, and what cannot be used is refused."""

import dataclasses
import pathlib
import pwd
import re
import subprocess
import sys

import pytest

from qnas_jax.bwnas import config
from qnas_jax.errors import InputError
from qnas_jax.oneshot import config as oneshot_config
from qnas_jax.run import cli, paths
from qnas_jax.stages import experiment

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_homes_are_filled_in_and_all_else_stays(home):
    own = pwd.getpwuid(0)
    for text, expected in {
        "~/x": f"{home}/x",
        "~": str(home),
        f"~{own.pw_name}/x": f"{own.pw_dir}/x",
        "./~/x": "./~/x",
        "x/~": "x/~",
        "data/$USER/": "data/$USER/",
        "/a b": "/a b",
    }.items():
        assert paths.expanded("--x", text) == expected
        assert paths.expanded("--x", expected) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--x='': must be a path"),
        (" ", "--x=' ': must be a path"),
        ("a\0b", "--x='a\\x00b': must be a path"),
        ("~nobody-of-this-name/x", "there is no such home; write the whole path"),
    ],
)
def test_a_text_that_is_no_path_is_refused(text, message):
    for function in (paths.named, paths.folder, paths.file):
        with pytest.raises(InputError, match=re.escape(message)):
            function("--x", text)


def test_a_home_that_nobody_knows_is_refused(monkeypatch):
    """Containers have users without a passwd entry."""

    def nobody(_):
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(InputError, match=r"--x=~/y: there is no such home"):
        paths.named("--x", "~/y")


def test_a_folder_is_there_or_can_be_made(home):
    (home / "file").touch()
    assert paths.folder("--x", "~/new/er") == home / "new" / "er"
    assert paths.folder("--x", str(home)) == home
    assert paths.folder("--x", "runs") == pathlib.Path("runs")
    for text in ("~/file", "~/file/x/y"):
        with pytest.raises(
            InputError, match=rf"^--x={home}/file.*: .*/file is a file, must be a f"
        ):
            paths.folder("--x", text)
    assert [path.name for path in home.iterdir()] == ["file"], "asking makes nothing"


def test_a_file_to_write_is_refused_before_the_work(home, monkeypatch):
    (home / "file").touch()
    for text in ("~/file", "~/new/file", "file"):
        paths.file("--x", text)
    for text, message in (
        ("~", "is no file, must be one"),
        ("/dev/null", "is no file, must be one"),
        ("~/file/x", "/file is a file, must be a folder"),
    ):
        with pytest.raises(InputError, match=message):
            paths.file("--x", text)
    monkeypatch.setattr(paths.os, "access", lambda path, mode: path != home)
    with pytest.raises(InputError, match="cannot be written; take another place"):
        paths.file("--x", "~/new/file")


def test_every_path_of_a_config_gets_its_home(home):
    for name in experiment.PATHS:
        section, field = name.split(".")
        given, refused = config.Config(), config.Config()
        setattr(getattr(given, section), field, "~/x")
        found = paths.with_homes(given, experiment.PATHS)
        assert getattr(getattr(found, section), field) == f"{home}/x"
        assert getattr(getattr(given, section), field) == "~/x", "the given one stays"
        setattr(getattr(refused, section), field, "~nobody-of-this-name")
        with pytest.raises(InputError, match=rf"{name}=~nobody"):
            experiment.prepare(refused)
    assert paths.with_homes(config.Config(), experiment.PATHS) == config.Config()


@pytest.mark.parametrize("given", [config.Config, oneshot_config.Config])
def test_every_text_of_a_config_is_a_path_or_a_choice(given):
    """A new setting that is a path must be in PATHS."""
    default, texts = given(), set()
    for field in dataclasses.fields(default):
        section = getattr(default, field.name)
        inner = dataclasses.fields(section) if dataclasses.is_dataclass(section) else ()
        texts |= {f"{field.name}.{f.name}" for f in inner if isinstance(f.default, str)}
    choices = {"source", "sampling", "compute", "compile", "bits_per", "ranges"}
    choices |= {"weight_ranges", "a_ranges_per", "init", "dilate", "name", "optimizer"}
    choices |= {"cost", "search"}
    rest = {name for name in texts if name.split(".")[1] not in choices | {"target"}}
    assert rest == set(experiment.PATHS)


PROGRAMS = sorted((*(ROOT / "launch").rglob("*.py"), *(ROOT / "qnas_jax/programs").glob("*.py")))


@pytest.mark.parametrize("file", PROGRAMS, ids=lambda f: f.name)
def test_programs_take_no_path_as_it_is_written(file):
    assert "pathlib.Path(" not in file.read_text()


def test_the_config_file_may_lie_in_a_home(home):
    assert cli._with_home(["main", "--config=~/c.py", "--config.seed=1", "--workdir=~/x"]) == [
        *("main", f"--config={home}/c.py", "--config.seed=1", "--workdir=~/x")
    ]
    assert cli._with_home(["main", "--config", "~/c.py"]) == ["main", "--config", f"{home}/c.py"]


def _told(*arguments, program="launch/main.py"):
    command = [sys.executable, *program.split(), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_programs_fill_in_homes_and_refuse_in_one_line(home):
    """A budget that nothing meets ends each before any work."""
    (home / "c.py").write_text((ROOT / "configs" / "smoke.py").read_text())
    given = ["--config=~/c.py", "--config.search.budgets=(('size_bytes', 1000),)"]
    assert "the smallest subnet has" in _told(*given, "--workdir=~/runs")
    assert (home / "runs" / ".lock").exists() and not (ROOT / "~").exists()
    table = ["--config.hardware.table=~/none.csv", "--workdir=~/runs"]
    assert f"error: {home}/none.csv: no such file" in _told("--config=~/c.py", *table)
    assert "--workdir='': must be a path" in _told(*given, "--workdir=")
    assert f"{home}/c.py is a file, must be a folder" in _told(*given, "--workdir=~/c.py/x")
    assert "error: --config='': must be a path" in _told("--config=")
    found = _told("--workdir=~/none", program="launch/main.py pick")
    assert found.startswith(f"error: {home}/none/lut/lut.npz: ")
    found = _told("lut", "--json=~", program="launch/bench/main.py")
    assert found == f"error: --json={home}: is no file, must be one"
