"""A target that only tests have, and a run laid out for it."""

import pathlib
import runpy

from qnas_jax.hardware import target
from qnas_jax.stages import experiment

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
    costs=target.of_model(1e6, macs_ms, bits_mj),
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


def prepared(config, tmp_path):
    config.check()
    return experiment.prepare(config, tmp_path)
