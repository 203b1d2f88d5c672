"""Measures this engine against the tools people use today, both in one run.

    python launch/bench/main.py lut --json lut.json
    python launch/bench/main.py layers --json layers.json
    python launch/bench/main.py distill --json distill.json
    python launch/bench/main.py front --json front.json
    python launch/bench/main.py search --json search.json
    python launch/bench/main.py regret --json regret.json
    python launch/bench/main.py haq --json haq.json
    python launch/bench/main.py hqnas --json hqnas.json
    python launch/bench/main.py memory --json memory.json

The comparison with torch needs pip install -e '.[bench]'.
"""

import argparse
import json

import distill
import front
import haq
import hqnas
import layers
import lut
import memory
import regret
import search
from qnas_jax.run import parallel, paths

HELP = argparse.RawDescriptionHelpFormatter  # keeps the lines of docstrings
SUBJECTS = {
    "lut": lut,
    "layers": layers,
    "distill": distill,
    "front": front,
    "search": search,
    "regret": regret,
    "haq": haq,
    "hqnas": hqnas,
    "memory": memory,
}


def main() -> None:
    """Runs one subject; prints its table and writes its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HELP)
    subjects = parser.add_subparsers(dest="subject", required=True)
    for name, subject in SUBJECTS.items():
        doc = subject.__doc__ or ""
        one = subjects.add_parser(
            name, help=doc.splitlines()[0], description=doc, formatter_class=HELP
        )
        one.add_argument("--json", help="the JSON file to write")
        subject.add_arguments(one)
    arguments = parser.parse_args()
    path = None if arguments.json is None else paths.file("--json", arguments.json)
    parallel.check_devices()
    figures = SUBJECTS[arguments.subject].run(arguments)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + "\n")
        print(f"figures: {path}")
