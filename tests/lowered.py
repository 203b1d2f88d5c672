"""Runs tiny pipelines, and lowers every program that they call for accelerators. Not a test.

    python tests/lowered.py RUN FOLDER FORM

Prints as JSON what was lowered, by stage, and what was wrong. A program is lowered for the shapes
and types that it is called with, in a form of accelerators, just before it runs in the CPU's.
Training steps are lowered and not run, as they take longest to compile: states stay as they begin.
"""

import collections
import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import sys
import traceback

import jax
import numpy as np
from jax import export

_jit = jax.jit
TRAINING = "program.<locals>.steps"  # of train/loop.py: (constants, state, ...) -> state, metrics
PLATFORMS = "cuda", "tpu"
PACKAGE = pathlib.Path(__file__).parents[1] / "qnas_jax"

# The types that both platforms compute with. TPUs have no float64. JAX counts the random bits of
# an array in 64 bits on every platform ("ui64"); all other integers have 32 unless x64 is on.
TYPES = {"f32", "bf16", "i1", "i8", "ui8", "i16", "ui16", "i32", "ui32", "ui64"}
# What JAX itself calls: random bits on NVIDIA's GPUs, and notes on how arrays are laid out.
CALLS = {"cu_threefry2x32_ffi", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"}

_ATTRIBUTE = re.compile(r"= dense<[^>]*> : tensor<[^>]*>")  # e.g. which devices add up
_TYPE = re.compile(r"tensor<(?:[0-9?]+x)*((?:complex<)?[a-z][a-z0-9]*)")
_CALL = re.compile(r"custom_call @\"?([\w.]+)")
_GROUPED = re.compile(r"feature_group_count = (?!1\b)\d+")


def faults(text):
    """What accelerators cannot run in a program in StableHLO."""
    types = set(_TYPE.findall(_ATTRIBUTE.sub("", text))) - TYPES
    calls = set(_CALL.findall(text)) - CALLS
    return [f"has the type {name}" for name in sorted(types)] + [
        f"calls {name}" for name in sorted(calls)
    ]


class Recorder:
    """Stands in the place of `jax.jit` and lowers what is called.

    Attributes:
      programs: How many of each name were lowered, by stage.
      wrong: What could not be lowered, or could not run.
      grouped: The programs that have depthwise convolutions as grouped ones.
    """

    def __init__(self, form):
        self.programs = collections.defaultdict(collections.Counter)
        self.wrong, self.grouped = [], 0
        self._form, self._seen, self._busy = form, {}, False

    def jit(self, function, **settings):
        return Recorded(self, _jit(function, **settings), settings)

    def called(self, program, given, named):
        """Lowers a program, unless that was done for such arguments, or another one calls it."""
        if self._busy or any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(given)):
            return
        key = id(program), str(given), str(named)
        if key not in self._seen:
            self._seen[key] = program  # held, so that no other one gets its id
            self._busy = True
            try:
                self._lower(program, given, named)
            finally:
                self._busy = False

    def _lower(self, program, given, named):
        from qnas_jax.kernels import forms

        stage, name = _stage(), f"{program.__module__}.{program.__qualname__}"
        try:
            with forms.given(self._form):
                text = export.export(program, platforms=PLATFORMS)(*given, **named).mlir_module()
        except Exception as error:
            found = traceback.format_exception_only(error)[-1].splitlines()[0]
            self.wrong.append(f"{stage}: {name}: {found}")
            return
        self.wrong += [f"{stage}: {name} {fault}" for fault in faults(text)]
        self.programs[stage][name.removeprefix("qnas_jax.")] += 1
        self.grouped += bool(_GROUPED.search(text))


class Recorded:
    """A jitted function whose calls are recorded before they run."""

    def __init__(self, recorder, program, settings):
        self._recorder, self._program = recorder, program
        numbers, names = settings.get("static_argnums", ()), settings.get("static_argnames", ())
        self._numbers = (numbers,) if isinstance(numbers, int) else numbers
        self._names = (names,) if isinstance(names, str) else names
        functools.update_wrapper(self, program)

    def __call__(self, *args, **named):
        given = [x if i in self._numbers else jax.tree.map(_shape, x) for i, x in enumerate(args)]
        named_ = {k: x if k in self._names else jax.tree.map(_shape, x) for k, x in named.items()}
        self._recorder.called(self._program, given, named_)
        if self._program.__qualname__ == TRAINING:
            metrics = self._program.eval_shape(*args)[1]
            return args[1], jax.tree.map(lambda x: np.ones(x.shape, x.dtype), metrics)
        return self._program(*args, **named)

    def __getattr__(self, name):
        return getattr(self._program, name)


def _shape(leaf):
    """A leaf without its numbers; one that is being traced as it is."""
    if isinstance(leaf, jax.core.Tracer) or not hasattr(leaf, "dtype"):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=getattr(leaf, "weak_type", False))


def _stage():
    """Which function a pipeline called, e.g. "stages.train.train_teacher"."""
    found, frame = [], sys._getframe()
    while frame:
        file = pathlib.Path(frame.f_code.co_filename)
        if PACKAGE in file.parents:
            parts = file.relative_to(PACKAGE).with_suffix("").parts
            if parts[0] != "run" and parts[-1] not in ("pipeline", "mesh"):
                found.append(".".join((*parts, frame.f_code.co_name)))
        frame = frame.f_back
    return found[-1]


def search(folder):
    """All stages of QA-BWNAS up to the front, with a table in either arithmetic, and QAT."""
    from qnas_jax.bwnas import config, pipeline
    from qnas_jax.kernels import int8
    from qnas_jax.run.recipes import Retrain
    from qnas_jax.stages import fit, qat

    int8.find_kernel = lambda may_compile=True: int8.Found("XLA", False, "")  # as on accelerators
    given = config.Config(
        data=config.Data(height=32, width=64, train_images=16, val_images=6),
        network=config.Network(width=0.1, head_channels=16, rates=(1,), dropout=0.1),
        train=config.Train(steps=2, batch=2, lr=0.05, crop=(32, 64)),
        space=config.Space(kernels=(3, 5), expansions=(2,), depths=(2, 1, 1, 1, 1, 1)),
        supernet=config.Supernet(steps=1, batch=2, lr=(0.05,) * 6, parts=2),
        lut=config.Lut(calibration_images=2, images=4, images_per_pass=2, compute="int8"),
        quantize=config.Quantize(images=4, images_per_pass=4),
    )
    pipeline.search(given, folder)
    for name in ("lut", "search"):
        shutil.rmtree(folder / name)
    given.lut = dataclasses.replace(given.lut, compute="float32")
    begun = pipeline.search(given, folder).begun
    learned = Retrain(qat_steps=2, qat_norm_steps=1, distill=(("logits", 1.0), ("features", 0.5)))
    qat.train(folder, begun.problem, fit.training(begun.config), learned, begun.teacher)


def whole(folder):
    """A whole run of QA-BWNAS, with adaptive rounding, retrained networks and files."""
    from configs import smoke
    from qnas_jax.bwnas import pipeline
    from qnas_jax.kernels import int8

    int8.find_kernel = lambda may_compile=True: int8.Found("XLA", False, "")
    given = smoke.get_config()
    given.quantize = dataclasses.replace(given.quantize, rounding_steps=1, biases=True)
    given.export.max_drop = 100.0
    pipeline.run(given, folder)


def audit(folder):
    """The scores of a ranking, and the networks that they are held against."""
    import small_audit
    from qnas_jax.ranking import pipeline

    pipeline.run(small_audit.given(), folder)


def haq(folder):
    """A whole run of HAQ."""
    import small_haq
    from qnas_jax.haq import pipeline

    pipeline.run(small_haq.small(), folder)


def hqnas(folder):
    """A whole run of HQNAS."""
    import small_hqnas
    from qnas_jax.hqnas import pipeline

    pipeline.run(small_hqnas.small(exports=False), folder)


def oneshot(folder):
    """A whole run of one-shot search."""
    import small_oneshot
    from qnas_jax.oneshot import pipeline

    pipeline.run(small_oneshot.small(), folder)


RUNS = {run.__name__: run for run in (search, whole, audit, haq, hqnas, oneshot)}


def main():
    run, folder, form = sys.argv[1:]
    recorder = Recorder(form)
    jax.jit = recorder.jit
    os.cpu_count = lambda: 1  # networks one after another: a recorder is for one thread
    jax.config.update("jax_disable_most_optimizations", True)
    RUNS[run](pathlib.Path(folder))
    print(
        json.dumps(
            {"wrong": recorder.wrong, "grouped": recorder.grouped, "programs": recorder.programs}
        )
    )


if __name__ == "__main__":
    main()
