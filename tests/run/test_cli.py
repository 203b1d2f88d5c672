"""What programs print, and where."""

import os
import pathlib
import subprocess
import sys

import pytest

IMPORTS = "from qnas_jax.run import cli\nfrom qnas_jax.errors import InputError"
ROOT = pathlib.Path(__file__).parents[2]


def _ran(body, shell='"$@"', **environment):
    """A program whose main function is `body`, started by a shell's command."""
    script = f"{IMPORTS}\ndef main(): {body}\ncli.start(main, '', 'none')"
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
