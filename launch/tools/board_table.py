"""Makes a table of measured latencies from what a runtime's tool printed on a board.

    python launch/tools/board_table.py --files files --table runs/board.csv --device "my board" \
        --runtime litert --runtime_version 2.16

Reads what launch/jobs/profile_board.sh leaves: FILE.log beside every file of the manifest.
Lines that the table has already stay as they are. A log without figures of the runs (the tool
crashed, or its output was cut off) is left out and named at the end, and the exit code is then 2;
the lines of all others are in the table.
"""

from qnas_jax.run import platform

if __name__ == "__main__":
    platform.prepare_process()  # before all other imports

import sys

from absl import flags

from qnas_jax.errors import InputError
from qnas_jax.hardware import board, measured
from qnas_jax.run import cli, paths

_FILES = flags.DEFINE_string("files", None, "Folder of files, logs and manifest.", required=True)
_TABLE = flags.DEFINE_string("table", None, "The CSV file.", required=True)
_DEVICE = flags.DEFINE_string("device", None, "The board's name.", required=True)
_RUNTIME = flags.DEFINE_string("runtime", None, "What ran the files.", required=True)
_VERSION = flags.DEFINE_string("runtime_version", "", "Its version.")
_THREADS = flags.DEFINE_integer("threads", 1, "How many it had.", lower_bound=1)


def main() -> None:
    """Appends what the table has not."""
    table = paths.file("--table", _TABLE.value)
    files = paths.named("--files", _FILES.value)
    words = (_RUNTIME.value.strip(), _VERSION.value.strip(), _DEVICE.value.strip())
    conditions = (*words, _THREADS.value)
    found, refused = board.rows(files, *conditions)
    held = measured.read(table) if table.exists() else []
    measured.check_conditions(table, held, conditions)
    done = {row.subject for row in held}
    for row in found:
        if row.subject not in done:
            measured.append(table, row)
    wanted = len(board.read_manifest(files)) - len(board.CALLS)
    print(f"{len(found)} of {wanted} were measured: {table}")
    for reason in refused:
        print(reason, file=sys.stderr)
    if refused:
        raise InputError(f"logs without figures, see above: {len(refused)}; {table} has the others")


if __name__ == "__main__":
    cli.start(main)
