"""A target that only tests have, and a run laid out for it."""

import pathlib
import runpy
from typing import NamedTuple

import numpy as np

from qnas_jax import space
from qnas_jax.bwnas import inspection, search_front
from qnas_jax.bwnas.config import Config
from qnas_jax.bwnas.lut import table
from qnas_jax.hardware import measured, target
from qnas_jax.hardware.deployment import Deployment
from qnas_jax.run import artefacts
from qnas_jax.run.stage import Stage
from qnas_jax.stages import experiment, fit
from qnas_jax.stages import train as train_stage
from qnas_jax.stages.experiment import Problem

ROOT = pathlib.Path(__file__).parents[1]


def macs_ms(device, conv, w_bits, a_bits):
    return conv.macs / device + 0 * w_bits


def bits_mj(device, conv, w_bits, a_bits):
    return conv.weights * w_bits * a_bits / device


CHIP = target.Target(
    "chip",
    kernels=(3, 7),
    bits=((8, 8), (4, 4)),
    granularity="block",
    costs=target.of_model(1e6, {"latency_ms": macs_ms, "energy_mj": bits_mj}),
)


def smoke():
    """The smoke config."""
    return runpy.run_path(str(ROOT / "configs" / "smoke.py"))["get_config"]()


def chosen(config, monkeypatch):
    """The config with the chip as its target, which is among all targets from now on."""
    monkeypatch.setitem(target.TARGETS, "chip", CHIP)
    config.hardware.target = "chip"
    config.space.kernels, config.space.w_bits, config.space.a_bits = (3, 5, 7), (8, 6, 4), (8, 6, 4)
    config.search.costs = ("size_bytes", "latency_ms", "energy_mj")
    return config


class LaidOut(NamedTuple):
    """A run before its first stage."""

    config: Config
    problem: Problem
    deployed: Deployment
    workdir: pathlib.Path

    @property
    def how(self):
        return fit.training(self.config)

    @property
    def searched(self):
        return self.problem.space

    @property
    def bits(self):
        return self.config.space.bits

    @property
    def image_shape(self):
        return self.deployed.image_shape


def prepared(config, tmp_path):
    config.check()
    return LaidOut(*experiment.prepare(config), tmp_path)


def check_target(laid_out):
    inspection.check_target(laid_out.config, laid_out.searched, laid_out.deployed)


def teacher_stage(laid_out):
    config = laid_out.config
    how = (laid_out.workdir, laid_out.problem, laid_out.how)
    return train_stage.teacher_stage(*how, config.network, config.teacher)


def write_table(path, laid_out, ops, factor=1.0):
    """A table of measurements with latencies in proportion to the MACs."""

    def add(probe, convs):
        ms = factor * sum(conv.macs for conv in convs) / 1e6
        measured.append(
            path, measured.Row(probe, ms, *[None] * 4, 9, None, "runtime", "1", "board", 2)
        )  # fmt: skip

    for part, convs in laid_out.deployed.parts.items():
        height, width = max((c.in_height, c.in_width) for c in convs)
        add(measured.ProbeKey(part, "", height, width, 3, 8, 1, 1, 8, 8), convs)
    for place in laid_out.deployed.places:
        for op in ops:
            shape, rest = place[2:5], place[5:]
            add(measured.probe_key(place, op, 8, 8), space.mbconv_convs(op, "", shape, *rest))


def populated(laid_out):
    """A finished table with random NSRs."""
    stage = Stage(laid_out.workdir / "lut", {"seed": 0})
    parts = table.parts_of(laid_out.searched, laid_out.bits, per_layer=False)
    nsr = np.random.default_rng(0).uniform(1, 2, sum(part.rows for part in parts))
    rows = table.build(nsr.astype(np.float32), laid_out.searched, parts)
    table.save(stage.folder / "lut.npz", rows)
    described = {"fixed_size_bytes": laid_out.deployed.fixed()["size_bytes"]}
    artefacts.write_json(stage.folder / "lut.json", described)
    artefacts.write_json(laid_out.workdir / "config.json", laid_out.config)
    stage.finish()
    return stage, rows


def searched(laid_out, stage=None, rows=None):
    """The search of a run, by default over a table of random NSRs."""
    if stage is None:
        stage, rows = populated(laid_out)
    how, deployed = laid_out.config.search, laid_out.deployed
    return search_front.search_front(laid_out.workdir, how, deployed, stage, rows)
