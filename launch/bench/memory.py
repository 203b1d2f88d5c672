"""The memory of each stage of QA-BWNAS on an accelerator, counted without one.

    python launch/bench/main.py memory --json memory.json

For a config of segmentation, by default the published one. Programs are traced for the shapes that
the stages call them with, and their arrays are counted (see `qnas_jax/profiling/memory.py`). With
--run each program is also compiled and run on the device at hand, on arrays of ones: the table then
has XLA's own bytes, and seconds. Without, nothing is compiled or run.
"""

import argparse
import runpy
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import machine
from qnas_jax.bwnas.config import Config
from qnas_jax.errors import InputError
from qnas_jax.kernels import forms
from qnas_jax.profiling import memory
from qnas_jax.profiling.memory import Memory
from qnas_jax.run import paths
from stage_programs import Program, case_of, stages

DEVICES_GB = (16, 40, 80)
REPEATS = 3


class Measured(NamedTuple):
    """A program on the device at hand.

    Attributes:
      bytes: Its arguments, results and temporary memory, as XLA plans them.
      compile_s: Seconds of compilation.
      run_s: Seconds of a run, the shortest.
    """

    bytes: int
    compile_s: float
    run_s: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subject."""
    parser.add_argument("--config", default="configs/cityscapes.py", help="of QA-BWNAS")
    parser.add_argument("--form", choices=("grouped", "shifted"), default="grouped")
    parser.add_argument("--only", default="", help="programs whose names contain this")
    parser.add_argument("--run", action="store_true", help="also compile and run each program")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Counts all stages; prints a table; returns the figures."""
    config, form = arguments.config, arguments.form
    given = runpy.run_path(str(paths.named("--config", config)))["get_config"]()
    if not isinstance(given, Config):
        raise InputError(f"--config={config}: must be a config of QA-BWNAS")
    if arguments.run:
        print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {form}")
    columns = [*(f"{size} GB" for size in DEVICES_GB)]
    columns += ["XLA GB", "compile s", "run ms"] if arguments.run else []
    print(f"| program | arguments GB | in all GB | {' | '.join(columns)} |")
    print(f"|{'---|' * (3 + len(columns))}")
    counted, measured = {}, {}
    with forms.given(form):
        for name, made in stages(case_of(given)):
            if arguments.only not in name:
                continue
            program = made()
            counted[name] = found = program.memory()
            cells = row(found)
            if arguments.run:
                measured[name] = ran = measure(program)
                cells += [
                    f"{ran.bytes / 1e9:.1f}",
                    f"{ran.compile_s:.1f}",
                    f"{1e3 * ran.run_s:.1f}",
                ]
            print(f"| {' | '.join((name, *cells))} |", flush=True)
    figures = {"config": config, "form": form, "factor": memory.FACTOR}
    figures["bytes"] = {name: one._asdict() for name, one in counted.items()}
    figures["measured"] = {name: one._asdict() for name, one in measured.items()}
    return figures


def row(found: Memory) -> list[str]:
    """Cells of the table: bytes, and whether a device is large enough, with the count's factor."""

    def fits(size):
        return "yes" if memory.FACTOR * found.total <= size else "no" if found.total > size else "?"

    cells = [f"{found.arguments / 1e9:.2f}", f"{found.total / 1e9:.1f}"]
    return [*cells, *(fits(size * 1e9) for size in DEVICES_GB)]


def measure(program: Program) -> Measured:
    """Compiles and runs a program on arrays of ones."""
    begin = time.perf_counter()
    jitted = jax.jit(program.function, donate_argnums=program.donated)
    compiled = jitted.lower(*program.arguments).compile()
    compile_s = time.perf_counter() - begin
    plan: Any = compiled.memory_analysis()
    needed = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    times = []
    for _ in range(REPEATS + 1):  # the first may load kernels
        ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), program.arguments)
        jax.block_until_ready(ones)
        times.append(machine.once(lambda ones=ones: compiled(*ones)))
    return Measured(needed - plan.alias_size_in_bytes, compile_s, min(times[1:]))
