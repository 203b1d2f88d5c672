"""How long the exported networks take, in float and quantized, on ONNX Runtime here."""

import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from qnas_jax import space
from qnas_jax.export import runtimes
from qnas_jax.export.runtimes import Runtime
from qnas_jax.profiling import profile, synthetic
from qnas_jax.profiling.timing import Effort
from qnas_jax.run import artefacts
from qnas_jax.run.stage import Stage, read_json
from qnas_jax.stages.experiment import Setting

logger = logging.getLogger(__name__)

TEACHER = "teacher"  # among networks that are named by their subnets
THREADS = 1
EFFORT = Effort(width=0.02, limit_s=2.0)


def time_networks(setting: Setting, subnets: Sequence[str]) -> Stage:
    """Times the teacher and some subnets on one thread; writes `latency/latency.json`.

    Pictures have the size they have as deployed. A machine that does other things too only
    takes longer to tell, so these figures are for a first look.
    """
    made_from = {"network": setting.config.network, "picture": setting.picture()}
    stage = Stage(setting.workdir / "latency", made_from)
    # Another search may have chosen others, which take a moment to time.
    if not stage.done or list(of_run(setting.workdir)) != [TEACHER, *subnets]:
        stage.begin()
        found = compare(setting, subnets, runtimes.named("onnxruntime"), THREADS, EFFORT)
        artefacts.write_json(stage.folder / "latency.json", found)
        stage.finish()
        ratios = [figures["ratio"] for figures in found["networks"].values()]
        told = "latency: quantized networks are %.2f to %.2f times as fast as in float"
        logger.info(told, min(ratios), max(ratios))
    return stage


def compare(
    setting: Setting, subnets: Sequence[str], runtime: Runtime, threads: int, effort: Effort
) -> dict[str, Any]:
    """Latency of the teacher and some subnets; see `profile.compare`.

    Weights are made up: latencies do not depend on them.
    """
    networks = {TEACHER: (setting.teacher(), setting.teacher_subnet())}
    for text in subnets:
        subnet = space.parse_subnet(text)
        networks[text] = (setting.student(subnet), subnet)
    graphs = {}
    for name, (model, subnet) in networks.items():
        bits = [[(choice.w_bits, choice.a_bits) for choice in block] for block in subnet]
        float_, quantized = (synthetic.network(model, b, setting.picture()) for b in (None, bits))
        graphs[name] = (float_, quantized)
    found = profile.compare(graphs, runtime, threads, effort)
    return {**found, "picture": setting.picture()[:2]}


def of_run(workdir: pathlib.Path) -> dict[str, Any]:
    """What `time_networks` found: the figures of `compare` by network, the teacher first."""
    return read_json(workdir / "latency" / "latency.json", "networks")["networks"]


def as_text(found: Mapping[str, Any]) -> str:
    """What `compare` gives, a line for each network."""
    lines = ["float ms  quantized ms  ratio  network"]
    for name, figures in found["networks"].items():
        float_ms, quantized_ms = (figures[kind]["latency_ms"] for kind in ("float", "quantized"))
        lines.append(f"{float_ms:8.3f} {quantized_ms:13.3f} {figures['ratio']:6.2f}  {name}")
    return "\n".join(lines)
