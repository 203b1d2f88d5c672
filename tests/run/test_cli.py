"""What programs print, and where."""

import os
import pathlib
import subprocess
import sys

import pytest

IMPORTS = "from qnas_jax.run import cli\nfrom qnas_jax.errors import InputError"
ROOT = pathlib.Path(__file__).parents[2]


def _ran(body, shell='"$@"', defined="", **environment):
    """A program whose main function is `body`, started by a shell's command."""
    script = f"{IMPORTS}\n{defined}\ndef main(): {body}\ncli.start(main, '', 'none')"
    command = ["sh", "-c", shell, "sh", sys.executable, "-c", script]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_an_error_has_its_code_where_a_stream_is_closed(closed):
    done = _ran("raise InputError('no')", f'"$@" {closed}')
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "2>" in closed or done.stderr == "error: no\n"


def test_what_the_terminal_has_no_letter_for_is_written_as_its_code():
    done = _ran("print('pfad/\\u00e4/\\udcff')", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "pfad/\\xe4/\\udcff\n"), done.stderr


CONFIG = """
import dataclasses

@dataclasses.dataclass
class Section:
    steps: int = 3

@dataclasses.dataclass
class Config:
    seed: int = 0
    episodes: Section = dataclasses.field(default_factory=Section)
    def check(self):
        pass

def get_config():
    return Config()
"""


def test_a_config_of_any_system_is_taken_and_its_settings_are_known(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(CONFIG)

    def ran(setting):
        command = f'"$@" --config={path} --config.{setting}'
        return _ran("print(*cli.run_flags())", command, defined="cli.define_run_flags()")

    done = ran("episodes.steps=5")
    expected = "Config(seed=0, episodes=Section(steps=5)) runs/mine\n"
    assert (done.returncode, done.stdout) == (0, expected), done.stderr
    message = "error: config.episodes.stepps: no such setting; did you mean config.episodes.steps?"
    assert ran("episodes.stepps=5").stderr.splitlines()[-1] == message
    path.write_text("def get_config(): return 3")
    assert _ran("cli.run_flags()", f'"$@" --config={path}', "cli.define_run_flags()").stderr == (
        f"error: --config={path}: cannot be used (get_config() gives a int)\n"
    )


BROKEN = {  # the code, the line, and what is said of it
    "def get_config():\n    return missing\n": "2: NameError: name 'missing' is not defined",
    "def get_config(:\n": "1: SyntaxError: invalid syntax",
    "import json\ndef get_config():\n    return json.loads('x')\n": "3: JSONDecodeError: Expecting",
    "def get_config():\n    return {}['a']\n": "2: KeyError: 'a'",
    "import os\n\nos.nothing\n": "3: AttributeError: module 'os' has no attribute 'nothing'",
    "def f():\n    return int(None)\ndef get_config():\n    return f()\n": "2: TypeError: int()",
    "def get_config():\n    return open('none')\n": "2: FileNotFoundError: [Errno 2] No such file",
}


@pytest.mark.parametrize("code", BROKEN)
def test_an_error_in_a_config_file_names_its_line(code, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(code)
    done = _ran("cli.run_flags()", f'"$@" --config={path}', "cli.define_run_flags()")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --config") and line.endswith(")")
    assert f"cannot be used ({path}:{BROKEN[code]}" in line


def test_a_config_without_get_config_and_a_folder_are_named(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("x = 1")
    for given, reason in ((path, "it has no get_config()"), (tmp_path, "is a folder")):
        done = _ran("cli.run_flags()", f'"$@" --config={given}', defined="cli.define_run_flags()")
        assert done.returncode == 2
        assert done.stderr == f"error: --config={given}: cannot be used ({reason})\n"
