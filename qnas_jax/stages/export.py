"""Networks as files that deploy, and whether they compute what was measured."""

import functools
import itertools
import logging
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from qnas_jax import space
from qnas_jax.data.batching import stacked
from qnas_jax.export import describe, fold, interpret, parity, runtimes, simulate
from qnas_jax.export.graph import Graph
from qnas_jax.export.runtimes import Runtime
from qnas_jax.nn.deeplab import DeepLabV3
from qnas_jax.report import exports
from qnas_jax.run import artefacts
from qnas_jax.run.listing import listed
from qnas_jax.run.stage import Stage, read_json
from qnas_jax.stages import train as train_stage
from qnas_jax.stages.experiment import CLASSES, Setting
from qnas_jax.train import supervised

logger = logging.getLogger(__name__)

QUANTIZED, FLOAT = "model", "model_float"  # a suffix follows
MEASURED, FAKE = "jax_int8", "jax_quantized"  # `metrics.json` has the mIoU of the first
LEAST_AGREEMENT = 99.9  # percent of pixels; below it a file is warned of
_LINE = "{:>9} {:>13} {:>6} {:>11} {:>10} {:>13}  {:12}  {}"
SEE = "see docs/export.md"
CODE_IMAGES = 2  # validation pictures that are compared code by code


def export(setting: Setting, source: Stage, model: DeepLabV3, subnet: space.Subnet) -> Stage:
    """Writes a network's files and compares them with the network.

    Pictures have the size they have as deployed. Files for another size than that of the
    validation pictures lie in a folder of their own, and are compared on these, resized.

    Args:
      setting: The run's.
      source: The stage that trained and measured the network.
      model: The network.
      subnet: Its bitwidths.
    """
    stage = _stage(setting, source)
    if stage.done and not _missing(stage.folder):
        return stage
    stage.begin()
    variables, quant = train_stage.measured(setting, source, model, subnet)
    shape = setting.picture()
    network = fold.of_network(model, variables, quant, shape)
    floats = fold.of_network(model, variables, None, shape)
    found, written = runtimes.installed(), {}
    for runtime in found:
        artefacts.write(stage.folder / (FLOAT + runtime.suffix), runtime.file(floats))
        name, data = QUANTIZED + runtime.suffix, runtime.file(network)
        artefacts.write(stage.folder / name, data)
        written[name] = describe.File(runtime.file_format, len(data), runtime.exact_with)
    artefacts.write_json(stage.folder / "model.json", describe.describe(network, written))
    computed = _compare(setting, stage, model, {**variables, "quant": quant}, network, found)
    artefacts.write_json(stage.folder / "parity.json", computed)
    stage.finish()
    _tell(stage.folder, written, computed, found)
    return stage


def _stage(setting: Setting, source: Stage) -> Stage:
    """The stage of a network's files; the mark knows of a size where pictures are resized."""
    folder, made_from = setting.workdir / "export", {"network": source.hash}
    if setting.resizes:
        height, width, _ = setting.picture()
        folder, made_from = folder / f"{height}x{width}", made_from | {"picture": (height, width)}
    return Stage(folder / source.folder.name, made_from)


def _described(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `parity.json` and `model.json` say."""
    return (
        read_json(folder / "parity.json", "miou", "agreement"),
        read_json(folder / "model.json", "file_bytes", "graph_bytes"),
    )


def _missing(folder: pathlib.Path) -> list[str]:
    """Files of a finished stage that are gone, or have other sizes than they had."""
    held = _described(folder)[1]["file_bytes"]
    sizes = {file.name: file.stat().st_size for file in listed(folder, "*")}
    missing = [name for name, size in held.items() if sizes.get(name) != size]
    floats = (FLOAT + name.removeprefix(QUANTIZED) for name in held)
    missing += [name for name in floats if not sizes.get(name)]
    if missing:
        logger.info("%s: writes %s once more", folder.name, ", ".join(missing))
    return missing


def _tell(
    folder: pathlib.Path,
    written: Mapping[str, describe.File],
    computed: Mapping[str, Any],
    found: Iterable[Runtime],
) -> None:
    """Log lines for the files of a network."""
    for (name, file), runtime in zip(written.items(), found, strict=True):
        kilobytes, miou = file.file_bytes / 1e3, computed["miou"][name]
        line = "%s: %s for %d x %d has %.1f kB, mIoU %.2f %%"
        logger.info(line, folder.name, name, *computed["picture"], kilobytes, miou)
        agreement = computed["agreement"][MEASURED][name]
        if agreement < LEAST_AGREEMENT:
            line = "%s: %s gives only %.2f %% of the pixels the simulated class: %s; %s"
            reason = _reason(computed["layers"], name, runtime)
            logger.warning(line, folder.name, name, agreement, reason, SEE)
        if runtime.option:
            _tell_what_to_set(name, runtime.option)
    if not runtimes.has_litert():
        _tell_what_is_missing(folder.parent)


def _reason(layers: Iterable[Mapping[str, Any]], name: str, runtime: Runtime) -> str:
    """Why a file gives pixels other classes than the simulation does."""
    first = next((layer["name"] for layer in layers if layer[name]["differ"]), None)
    if first is None:
        return "no code differs in the images compared, so two classes are as good as equal there"
    cause = f"sums of bytes saturate in {runtime.name} on this CPU, " if runtime.saturates else ""
    return f"{cause}codes differ from {first} on"


@functools.cache  # one line a run
def _tell_what_to_set(name: str, option: str) -> None:
    line = "%s: sums of bytes saturate on this CPU unless a session sets %s, as this run did; %s"
    logger.warning(line, name, option, SEE)


@functools.cache  # one line a run
def _tell_what_is_missing(folder: pathlib.Path) -> None:
    logger.info("no LiteRT files: pip install -e '.[litert]', delete %s, and repeat", folder)


def check(folders: Iterable[pathlib.Path], max_miou_drop: float) -> None:
    """Holds every quantized file against what was measured and what was searched with.

    Apart from writing them: a finished stage is checked again, by another bound perhaps, and a
    file that loses too much loses nothing else of a run.

    Args:
      folders: Of the stages that wrote them.
      max_miou_drop: Points of mIoU that each may lose.

    Raises:
      InputError: A file loses more.
    """
    for folder in folders:
        place = folder / "parity.json"
        miou = read_json(place, "miou")["miou"]
        exports = [name for name in miou if name.startswith(f"{QUANTIZED}.")]
        for reference, file in itertools.product((MEASURED, FAKE), exports):
            parity.check(place, miou, file, reference, max_miou_drop)


def told(folders: Sequence[pathlib.Path], latencies: Mapping[str, Any]) -> dict[str, exports.File]:
    """What the report tells of each network's file for ONNX Runtime.

    Args:
      folders: Where the networks were exported to.
      latencies: Of the same networks, by name; see `latencies.compare`.
    """
    name, found = QUANTIZED + ".onnx", {}
    for folder, (network, timed) in zip(folders, latencies.items(), strict=True):
        parity_, model = _described(folder)
        found[network] = exports.File(
            file_bytes=model["file_bytes"][name],
            stored_bytes=model["file_bytes"][name] - model["graph_bytes"][name],
            miou=parity_["miou"][name],
            agreement=parity_["agreement"][MEASURED][name],
            float_ms=timed["float"]["latency_ms"],
            quantized_ms=timed["quantized"]["latency_ms"],
        )
    return found


def as_text(folders: Iterable[pathlib.Path]) -> str:
    """What networks and their files hold and compute, for a terminal.

    Sizes are in kB. `over` is what a quantized file has beyond the size table's bytes, and
    `as simulated` the pixels to which it gives the class that the simulation gives; these and
    mIoU are in percent.
    """
    titles = ("float kB", "quantized kB", "over", "mIoU float", "quantized", "as simulated")
    lines = [_LINE.format(*titles, "file", "network")]
    for folder in folders:
        parity_, model = _described(folder)
        miou, agreement = parity_["miou"], parity_["agreement"][MEASURED]
        simulated = (f"{miou[name]:.2f}" for name in ("jax_fp32", MEASURED))
        lines.append(_LINE.format("", "", "", *simulated, "", "(JAX)", folder.name))
        for name, held in model["file_bytes"].items():
            float_ = FLOAT + name.removeprefix(QUANTIZED)
            over = model["graph_bytes"][name] / (held - model["graph_bytes"][name])
            cells = [f"{size / 1e3:.1f}" for size in ((folder / float_).stat().st_size, held)]
            cells += [f"{100 * over:.2f}", f"{miou[float_]:.2f}", f"{miou[name]:.2f}"]
            lines.append(_LINE.format(*cells, f"{agreement[name]:.4f}", name, folder.name))
    return "\n".join(lines)


def _compare(
    setting: Setting,
    stage: Stage,
    model: DeepLabV3,
    variables: PyTree,
    network: Graph,
    found: tuple[Runtime, ...],
) -> dict[str, Any]:
    """What `parity.json` holds."""
    predict = supervised.predictor(model)
    # Put to the same place, both are served by one program.
    device = jax.local_devices()[0]
    rounded = jax.device_put(fold.with_bias_codes(variables, network), device)
    variables = jax.device_put(variables, device)
    floats = {name: leaves for name, leaves in variables.items() if name != "quant"}
    sources: dict[str, supervised.ClassMaps] = {
        "jax_fp32": functools.partial(predict, floats),
        FAKE: functools.partial(predict, variables),
        "simulation": functools.partial(predict, rounded),
        MEASURED: simulate.simulator(network),
    }
    for runtime in found:
        for name in (QUANTIZED + runtime.suffix, FLOAT + runtime.suffix):
            sources[name] = runtime.class_maps(stage.folder / name)
    data = setting.deployed_data()
    miou, agreement = parity.class_maps(sources, data, _pictures_at_once(setting), CLASSES)
    images = stacked(data, range(min(CODE_IMAGES, len(data)))).images
    rows = _codes(model, rounded, network, found, images)
    return {
        "picture": setting.picture()[:2],
        "images": len(data),
        "miou": miou,
        "agreement": agreement,
        "device": runtimes.device(),
        "runtimes": {runtime.name: runtime.version for runtime in found},
        "code_images": len(images),
        "codes": dict(parity.summary(rows)),
        "layers": rows,
    }


def _pictures_at_once(setting: Setting) -> int:
    """As many pixels as when the network was measured, so that memory suffices."""
    config, (height, width, _) = setting.config, setting.picture()
    return max(1, config.run.eval_batch * config.data.height * config.data.width // height // width)


def _codes(
    model: DeepLabV3,
    rounded: PyTree,
    network: Graph,
    found: tuple[Runtime, ...],
    images: np.ndarray,
) -> list[dict[str, Any]]:
    """What differs code by code; see `parity.layers`."""
    simulated = parity.simulate(model, network, rounded, images)
    int8 = simulate.tensors(network)(images)
    computed = {
        "integer": interpret.run(network, images),
        MEASURED: {name: np.asarray(value) for name, value in int8.items()},
    }
    for runtime in found:
        computed[QUANTIZED + runtime.suffix] = runtime.tensors(network, images)
    return parity.layers(network, simulated, computed)
