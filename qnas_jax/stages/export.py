"""Writes networks as files to deploy, and checks that the files compute what was evaluated."""

import functools
import itertools
import logging
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import PyTree

from qnas_jax.data.batching import Dataset, stacked
from qnas_jax.export import describe, fold, interpret, parity, runtimes, simulate
from qnas_jax.export.graph import Graph
from qnas_jax.export.runtimes import Runtime
from qnas_jax.hardware.deployment import Deployment
from qnas_jax.report import exports
from qnas_jax.run import artefacts, parallel, preempt
from qnas_jax.run.listing import listed
from qnas_jax.run.stage import Stage, read_json
from qnas_jax.stages import evaluation
from qnas_jax.stages.evaluation import Trained
from qnas_jax.stages.experiment import Problem, deployed_images, resizes
from qnas_jax.stages.fit import Training
from qnas_jax.tasks.task import Classify, Task
from qnas_jax.train import supervised

logger = logging.getLogger(__name__)

QUANTIZED, FLOAT = "model", "model_float"  # a suffix follows
MEASURED, FAKE = "jax_int8", "jax_quantized"  # `metrics.json` has the score of the first
LEAST_AGREEMENT = 99.9  # percent of the predictions; below it, a warning is logged
_LINE = "{:>9} {:>13} {:>6} {:>11} {:>10} {:>13}  {:12}  {}"
SEE = "see docs/export.md"
CODE_IMAGES = 2  # validation images that are compared code by code


def export_all(
    workdir: pathlib.Path,
    problem: Problem,
    how: Training,
    deployed: Deployment,
    networks: Sequence[Trained],
) -> list[Stage]:
    """Writes the files of several networks; see `export` and `parallel.side_by_side`."""
    one = functools.partial(export, workdir, problem, how, deployed)
    return parallel.side_by_side([functools.partial(one, network) for network in networks])


def export(
    workdir: pathlib.Path,
    problem: Problem,
    how: Training,
    deployed: Deployment,
    trained: Trained,
) -> Stage:
    """Writes the files of a network, and compares them with the network.

    The files are for images of the deployed size. If this is not the size of the validation
    images, the files get their own folder, and are compared on the validation images, resized.

    Args:
      workdir: The folder of the run.
      problem: Task and images.
      how: How the network was trained and evaluated.
      deployed: Has the size of deployed images.
      trained: The network.
    """
    stage = _stage(workdir, how, deployed, trained)
    if stage.done and not _missing(stage.folder, problem.task.metric.name):
        return stage
    stage.begin()
    plain, _ = evaluation.load_float(problem, how, trained)
    variables, quant = evaluation.load(problem, how, trained)
    model, shape = trained.model, deployed.image_shape
    network, floats = (
        fold.fold(model, *read, shape, resize=problem.task.per_pixel)
        for read in ((variables, quant), (plain, None))
    )
    found, written = runtimes.installed(), {}
    for runtime in found:
        artefacts.write(stage.folder / (FLOAT + runtime.suffix), runtime.file(floats))
        name, data = QUANTIZED + runtime.suffix, runtime.file(network)
        artefacts.write(stage.folder / name, data)
        written[name] = describe.File(runtime.file_format, len(data), runtime.exact_with)
    artefacts.write_json(stage.folder / "model.json", describe.describe(network, written))
    variables, task = {**variables, "quant": quant}, problem.task
    data, batch = deployed_images(problem, how.data, deployed), _batch(how, shape)
    computed = _compare(task, stage.folder, model, plain, variables, network, found, data, batch)
    artefacts.write_json(stage.folder / "parity.json", computed)
    stage.finish()
    _log(task, stage.folder, written, computed, found)
    return stage


def _stage(workdir: pathlib.Path, how: Training, deployed: Deployment, trained: Trained) -> Stage:
    """The stage of a network's files; its mark has the image size if images are resized.

    The size has the name that it has in the marks of older runs, so that these stay valid.
    """
    folder, made_from = workdir / "export", {"network": trained.stage.hash}
    if trained.learned:  # beside the files that the same network had before
        folder = folder / "qat"
    if resizes(how.data, deployed):
        height, width, _ = deployed.image_shape
        folder, made_from = folder / f"{height}x{width}", made_from | {"picture": (height, width)}
    return Stage(folder / trained.stage.folder.name, made_from)


def _described(folder: pathlib.Path, metric: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of `parity.json` and `model.json`."""
    return (
        read_json(folder / "parity.json", metric, "agreement"),
        read_json(folder / "model.json", "file_bytes", "graph_bytes"),
    )


def _missing(folder: pathlib.Path, metric: str) -> list[str]:
    """Files of a finished stage that are missing, or whose size has changed."""
    held = _described(folder, metric)[1]["file_bytes"]
    sizes = {file.name: file.stat().st_size for file in listed(folder, "*")}
    missing = [name for name, size in held.items() if sizes.get(name) != size]
    floats = (FLOAT + name.removeprefix(QUANTIZED) for name in held)
    missing += [name for name in floats if not sizes.get(name)]
    if missing:
        logger.info("%s: writes %s again", folder.name, ", ".join(missing))
    return missing


def _log(
    task: Task,
    folder: pathlib.Path,
    written: Mapping[str, describe.File],
    computed: Mapping[str, Any],
    found: Iterable[Runtime],
) -> None:
    """Logs the files of a network, and warns of files that compute something else."""
    for (name, file), runtime in zip(written.items(), found, strict=True):
        figures = file.file_bytes / 1e3, task.metric.title, computed[task.metric.name][name]
        line = "%s: %s for %d x %d has %.1f kB, %s %.2f %%"
        logger.info(line, folder.name, name, *computed["picture"], *figures)
        agreement = computed["agreement"][MEASURED][name]
        if agreement < LEAST_AGREEMENT:
            line = "%s: %s gives only %.2f %% of the predictions as simulated: %s; %s"
            reason = _reason(computed["layers"], name, runtime)
            logger.warning(line, folder.name, name, agreement, reason, SEE)
        if runtime.option:
            _warn_of_option(name, runtime.option)
    if not runtimes.has_litert():
        _log_no_litert(folder.parent)


def _reason(layers: Iterable[Mapping[str, Any]], name: str, runtime: Runtime) -> str:
    """Why a file predicts other classes than the simulation."""
    first = next((layer["name"] for layer in layers if layer[name]["differ"]), None)
    if first is None:
        return "no code differs in the images compared, so two classes are almost equal there"
    cause = f"sums of bytes saturate in {runtime.name} on this CPU, " if runtime.saturates else ""
    return f"{cause}codes differ from {first} on"


@functools.cache  # one line a run
def _warn_of_option(name: str, option: str) -> None:
    line = "%s: sums of bytes saturate on this CPU unless a session sets %s, as this run did; %s"
    logger.warning(line, name, option, SEE)


@functools.cache  # one line a run
def _log_no_litert(folder: pathlib.Path) -> None:
    logger.info("no LiteRT files: pip install -e '.[litert]', delete %s, and repeat", folder)


def check(folders: Iterable[pathlib.Path], task: Task, max_drop: float) -> None:
    """Checks the score of every quantized file against that of JAX.

    This is not done when the files are written, so that finished stages are checked as well.

    Args:
      folders: Folders of the stages that wrote the files.
      task: The task.
      max_drop: Points that each file may lose.

    Raises:
      InputError: A file loses more.
    """
    for folder in folders:
        place = folder / "parity.json"
        scores = read_json(place, task.metric.name)[task.metric.name]
        exports = [name for name in scores if name.startswith(f"{QUANTIZED}.")]
        for reference, file in itertools.product((MEASURED, FAKE), exports):
            parity.check(place, task.metric.title, scores, file, reference, max_drop)


def summary(
    folders: Mapping[str, pathlib.Path], metric: str, latencies: Mapping[str, Any]
) -> dict[str, exports.File]:
    """Returns the figures of each network's file for ONNX Runtime, for the report.

    Args:
      folders: The folder of each network's files, by the network's name.
      metric: Name of the task's main figure.
      latencies: Latencies of the same networks, by the same names; see `latency.compare`.
    """
    name, found = QUANTIZED + ".onnx", {}
    for network, folder in folders.items():
        (parity_, model), timed = _described(folder, metric), latencies[network]
        found[network] = exports.File(
            file_bytes=model["file_bytes"][name],
            stored_bytes=model["file_bytes"][name] - model["graph_bytes"][name],
            score=parity_[metric][name],
            agreement=parity_["agreement"][MEASURED][name],
            float_ms=timed["float"]["latency_ms"],
            quantized_ms=timed["quantized"]["latency_ms"],
        )
    return found


def as_text(folders: Iterable[pathlib.Path], task: Task) -> str:
    """Returns the sizes and scores of networks and their files, for a terminal.

    Sizes are in kB. `over` is the part of a quantized file beyond the bytes of the size table.
    `as simulated` is the part of the predictions that equal the simulation's. Both and the
    scores are in percent.
    """
    titles = ("float kB", "quantized kB", "over")
    titles += (f"{task.metric.title} float", "quantized", "as simulated")
    lines = [_LINE.format(*titles, "file", "network")]
    for folder in folders:
        parity_, model = _described(folder, task.metric.name)
        scores, agreement = parity_[task.metric.name], parity_["agreement"][MEASURED]
        simulated = (f"{scores[name]:.2f}" for name in ("jax_fp32", MEASURED))
        lines.append(_LINE.format("", "", "", *simulated, "", "(JAX)", folder.name))
        for name, held in model["file_bytes"].items():
            float_ = FLOAT + name.removeprefix(QUANTIZED)
            over = model["graph_bytes"][name] / (held - model["graph_bytes"][name])
            cells = [f"{size / 1e3:.1f}" for size in ((folder / float_).stat().st_size, held)]
            cells += [f"{100 * over:.2f}", f"{scores[float_]:.2f}", f"{scores[name]:.2f}"]
            lines.append(_LINE.format(*cells, f"{agreement[name]:.4f}", name, folder.name))
    return "\n".join(lines)


def _compare(
    task: Task,
    folder: pathlib.Path,
    model: nn.Module,
    plain: PyTree,
    variables: PyTree,
    network: Graph,
    found: tuple[Runtime, ...],
    data: Dataset,
    batch: int,
) -> dict[str, Any]:
    """The content of `parity.json`."""
    predict = supervised.predictor(model, task.predict)
    # On the same device, both use one compiled program.
    device = jax.local_devices()[0]
    rounded = jax.device_put(fold.with_bias_codes(variables, network), device)
    variables, plain = jax.device_put((variables, plain), device)
    sources: dict[str, Classify] = {
        "jax_fp32": functools.partial(predict, plain),
        FAKE: functools.partial(predict, variables),
        "simulation": functools.partial(predict, rounded),
        MEASURED: simulate.simulator(network),
    }
    for runtime in found:
        for name in (QUANTIZED + runtime.suffix, FLOAT + runtime.suffix):
            sources[name] = runtime.class_maps(folder / name)
    _stop_if_given_up()
    scores, agreement = parity.class_maps(sources, data, batch, task)
    _stop_if_given_up()
    images = stacked(data, range(min(CODE_IMAGES, len(data)))).images
    rows = _codes(model, rounded, network, found, images)
    return {
        "picture": network.x.shape[:2],
        "images": len(data),
        task.metric.name: scores,
        "agreement": agreement,
        "device": runtimes.device(),
        "runtimes": {runtime.name: runtime.version for runtime in found},
        "code_images": len(images),
        "codes": dict(parity.summary(rows)),
        "layers": rows,
    }


def _stop_if_given_up() -> None:
    """Ends the work on a network's files if that on another's has failed, or SIGTERM came."""
    if parallel.is_given_up():
        raise preempt.Stopped(preempt.MESSAGE)


def _batch(how: Training, image_shape: tuple[int, int, int]) -> int:
    """Images per batch: with as many pixels as when the network was evaluated, for the memory."""
    pixels = how.run.eval_batch * how.data.height * how.data.width
    return max(1, pixels // image_shape[0] // image_shape[1])


def _codes(
    model: nn.Module,
    rounded: PyTree,
    network: Graph,
    found: tuple[Runtime, ...],
    images: np.ndarray,
) -> list[dict[str, Any]]:
    """The differences code by code; see `parity.layers`."""
    simulated = parity.simulate(model, network, rounded, images)
    int8 = simulate.tensors(network)(images)
    computed = {
        "integer": interpret.run(network, images),
        MEASURED: {name: np.asarray(value) for name, value in int8.items()},
    }
    for runtime in found:
        computed[QUANTIZED + runtime.suffix] = runtime.tensors(network, images)
    return parity.layers(network, simulated, computed)
