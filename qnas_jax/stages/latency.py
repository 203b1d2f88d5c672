"""Times networks in float and quantized, on ONNX Runtime on this machine."""

import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from qnas_jax import space
from qnas_jax.export import runtimes
from qnas_jax.export.runtimes import Runtime
from qnas_jax.hardware.deployment import Deployment
from qnas_jax.nn.trace import trace
from qnas_jax.profiling import profile, synthetic
from qnas_jax.profiling.timing import Effort
from qnas_jax.run import artefacts, config
from qnas_jax.run.stage import Stage, read_json
from qnas_jax.stages.experiment import Problem, teacher_subnet

logger = logging.getLogger(__name__)

TEACHER = "teacher"  # its name; all other networks are named by their subnets
THREADS = 1
EFFORT = Effort(width=0.02, limit_s=2.0)


def time_networks(
    workdir: pathlib.Path,
    problem: Problem,
    network: config.Network,
    deployed: Deployment,
    subnets: Sequence[str],
) -> Stage:
    """Times the teacher and some subnets on one thread; writes `latency/latency.json`.

    The machine may be busy, so these figures are for a first look.

    Args:
      workdir: The folder of the run.
      problem: Has the networks.
      network: Their settings.
      deployed: Has the size of deployed images.
      subnets: The subnets in their text form.
    """
    image_shape = deployed.image_shape
    # The image size has the name that it has in the marks of older runs.
    stage = Stage(workdir / "latency", {"network": network, "picture": image_shape})
    # Another search may have chosen other subnets; timing them takes seconds.
    if not stage.done or list(of_run(workdir)) != [TEACHER, *subnets]:
        stage.begin()
        found = compare(
            problem, image_shape, subnets, runtimes.named("onnxruntime"), THREADS, EFFORT
        )
        artefacts.write_json(stage.folder / "latency.json", found)
        stage.finish()
        ratios = [figures["ratio"] for figures in found["networks"].values()]
        line = "latency: quantized networks are %.2f to %.2f times as fast as in float"
        logger.info(line, min(ratios), max(ratios))
    return stage


def compare(
    problem: Problem,
    image_shape: tuple[int, int, int],
    subnets: Sequence[str],
    runtime: Runtime,
    threads: int,
    effort: Effort,
) -> dict[str, Any]:
    """Returns the latencies of the teacher and some subnets; see `profile.compare`.

    The weights are random: latencies do not depend on them.
    """
    networks = {TEACHER: (problem.teacher, teacher_subnet(problem.teacher))}
    for text in subnets:
        subnet = space.parse_subnet(text)
        networks[text] = (problem.student(subnet), subnet)
    graphs = {}
    for name, (model, subnet) in networks.items():
        bits = [[(choice.w_bits, choice.a_bits) for choice in block] for block in subnet]
        traced = trace(model, image_shape)
        float_, quantized = (synthetic.network(traced, b) for b in (None, bits))
        graphs[name] = (float_, quantized)
    found = profile.compare(graphs, runtime, threads, effort)
    return {**found, "picture": image_shape[:2]}


def of_run(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the figures of `time_networks` by network, the teacher first."""
    return read_json(workdir / "latency" / "latency.json", "networks")["networks"]


def as_text(found: Mapping[str, Any]) -> str:
    """Returns the figures of `compare`, a line for each network."""
    lines = ["float ms  quantized ms  ratio  network"]
    for name, figures in found["networks"].items():
        float_ms, quantized_ms = (figures[kind]["latency_ms"] for kind in ("float", "quantized"))
        lines.append(f"{float_ms:8.3f} {quantized_ms:13.3f} {figures['ratio']:6.2f}  {name}")
    return "\n".join(lines)
