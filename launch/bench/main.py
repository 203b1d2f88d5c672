"""Measures this engine against the tools people use today, side by side in one run.

    python launch/bench/main.py lut --json lut.json
    python launch/bench/main.py distill --json distill.json
    python launch/bench/main.py front --json front.json

Needs torch for the comparison: pip install -e '.[bench]'
"""

from qnas_jax.run import platform

if __name__ == "__main__":
    platform.prepare_process()  # before all other imports

import argparse
import json

import distill
import front
import lut
from qnas_jax.run import cli, parallel, paths

SUBJECTS = {"lut": lut, "distill": distill, "front": front}


def main() -> None:
    """Runs one subject; prints its table and writes its figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    subjects = parser.add_subparsers(dest="subject", required=True)
    for name, subject in SUBJECTS.items():
        one = subjects.add_parser(name, help=(subject.__doc__ or "").splitlines()[0])
        one.add_argument("--json", help="file for the figures")
        subject.add_arguments(one)
    arguments = parser.parse_args()
    path = None if arguments.json is None else paths.file("--json", arguments.json)
    parallel.check_devices()
    figures = SUBJECTS[arguments.subject].run(arguments)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + "\n")
        print(f"figures: {path}")


if __name__ == "__main__":
    cli.guarded(main)
