"""Makes a latency table from the logs of a runtime's benchmark tool on a board.

    qnas board_table --files files --table runs/board.csv --device "my board" \\
        --runtime litert --runtime_version 2.16

Reads what launch/jobs/profile_board.sh leaves: FILE.log next to every file of the manifest. Rows
that the table already has stay unchanged. Logs without figures of the runs (the tool crashed, or
its output was cut off) are skipped and listed at the end, with exit code 2; the table then has the
rows of all others.
"""

import sys

from absl import flags

from qnas_jax.errors import InputError
from qnas_jax.hardware import board, measured
from qnas_jax.run import paths

_FILES = flags.DEFINE_string(
    "files", None, "The folder with the files, the logs and the manifest.", required=True
)
_TABLE = flags.DEFINE_string(
    "table", None, "The latency table to write, a CSV file.", required=True
)
_DEVICE = flags.DEFINE_string(
    "device", None, "The name of the board, for the table.", required=True
)
_RUNTIME = flags.DEFINE_string(
    "runtime", None, "The runtime that ran the files, for the table.", required=True
)
_VERSION = flags.DEFINE_string("runtime_version", "", "The version of the runtime, for the table.")
_THREADS = flags.DEFINE_integer(
    "threads", 1, "Threads that the runtime had, for the table.", lower_bound=1
)


def main() -> None:
    """Appends the rows that the table lacks."""
    table = paths.file("--table", _TABLE.value)
    files = paths.named("--files", _FILES.value)
    words = (_RUNTIME.value.strip(), _VERSION.value.strip(), _DEVICE.value.strip())
    conditions = (*words, _THREADS.value)
    found, refused = board.rows(files, *conditions)
    held = measured.read(table) if table.exists() else []
    measured.check_conditions(table, held, conditions)
    done = {row.probe for row in held}
    for row in found:
        if row.probe not in done:
            measured.append(table, row)
    wanted = len(board.read_manifest(files)) - len(board.CALLS)
    print(f"{len(found)} of {wanted} were measured: {table}")
    for reason in refused:
        print(reason, file=sys.stderr)
    if refused:
        raise InputError(f"logs without figures, see above: {len(refused)}; {table} has the others")
