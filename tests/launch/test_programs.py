"""The command `qnas`: its programs, and what their `--help` says."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / "qnas_jax" / "programs").glob("[a-z]*.py"))
ONE_SCREEN = 110  # lines


def qnas(*arguments, command=("-m", "qnas_jax")):
    command = [sys.executable, *command, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def flags_of(file):
    """The flags that a program defines: its own, and those of every run."""
    text = file.read_text()
    found = set(re.findall(r"flags\.DEFINE\w*\(\s*(?:TupleParser\(\), )?\"(\w+)\"", text))
    return found | ({"config", "workdir"} if "define_run_flags" in text else set())


@pytest.mark.parametrize("name", ["run", "pick", "profile_latency"])
def test_help_is_the_docstring_and_all_flags_with_a_text(name):
    file = ROOT / "qnas_jax" / "programs" / f"{name}.py"
    code, output, error = qnas(name, "--help")
    assert (code, error) == (0, "")
    doc, _, shown = output.partition(f"\nflags:\n\nqnas {name}:\n")
    assert doc.strip() == ast.get_docstring(ast.parse(file.read_text()))
    texts = dict(re.findall(r"^  --(?:\[no\])?(\w+): (.+)", shown, re.MULTILINE))
    assert texts.keys() == flags_of(file)
    assert "None" not in shown


def test_without_a_name_help_is_that_of_the_search_and_lists_the_others():
    code, output, _ = qnas("--help", command=("launch/main.py",))
    assert code == 0
    assert output.startswith("Runs the whole search")
    assert "\nqnas:\n  --adapt: " in output
    assert "\n  --config: " in output
    listed = re.findall(r"^  (\w+) +\S", output, re.MULTILINE)
    assert listed == [file.stem for file in FILES if file.stem != "run"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pik"], "'pik': must be one of audit, "),
        ([], "--config: must be given; see --help\n"),
        (["pick"], "--workdir: must be given; see --help\n"),
        (["pick", "--workdir=x", "--count=0"], "flag --count=0: "),
    ],
    ids=["name", "config", "workdir", "value"],
)
def test_what_cannot_be_started_is_refused_in_one_line(arguments, message):
    code, output, error = qnas(*arguments)
    assert (code, output) == (2, "")
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    if arguments == ["pik"]:
        assert error.endswith("; did you mean pick?\n")


def test_no_program_hides_a_module_of_the_standard_library():
    """Python finds what lies next to a started file before its own library."""
    names = {file.stem for file in (ROOT / "launch").rglob("*.py")}
    assert not names & sys.stdlib_module_names
    assert not any("sys.path" in file.read_text() for file in (ROOT / "qnas_jax").rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_program_fits_on_a_screen(file):
    assert len(file.read_text().splitlines()) <= ONE_SCREEN
