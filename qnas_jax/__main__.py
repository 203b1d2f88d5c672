"""The command `qnas`, or `python -m qnas_jax`: starts one of the programs in `qnas_jax/programs/`.

qnas --config configs/streets.py                  # the whole search
qnas pick --workdir runs/streets --help           # another program
"""

import ast
import difflib
import importlib.resources
import sys

from qnas_jax.run import cli, platform

SEARCH = "run"  # the program that needs no name


def main() -> None:
    """Starts the program that the first argument names, or the search."""
    named = len(sys.argv) > 1 and not sys.argv[1].startswith("-")
    name = sys.argv.pop(1) if named else SEARCH
    summaries = _summaries()
    if name not in summaries:
        near = difflib.get_close_matches(name, summaries, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"error: {name!r}: must be one of {', '.join(summaries)}{hint}", file=sys.stderr)
        raise SystemExit(cli.INPUT_ERROR)
    program = platform.prepared(f"qnas_jax.programs.{name}")
    sys.argv[0] = f"qnas {name}" if named else "qnas"
    others = "" if named else _overview(summaries)
    cli.start(program.main, f"{program.__doc__}{others}", program.__name__)


def _summaries() -> dict[str, str]:
    """The first line of every program's docstring, by the program's name; imports none of them."""
    found = {}
    for file in importlib.resources.files("qnas_jax.programs").iterdir():
        name, _, ending = file.name.partition(".")
        if ending == "py" and not name.startswith("_"):
            doc = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
            found[name] = doc.partition("\n")[0]
    return dict(sorted(found.items()))


def _overview(summaries: dict[str, str]) -> str:
    lines = ["", "Other programs, started as `qnas NAME`; `qnas NAME --help` says more:", ""]
    lines += [f"  {name:16} {doc}" for name, doc in summaries.items() if name != SEARCH]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
