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

from qnas_jax import artefact, segment, space
from qnas_jax.artefact import Stage
from qnas_jax.data.batching import stacked
from qnas_jax.export import describe, fold, interpret, parity, runtimes, simulate
from qnas_jax.export.graph import Graph
from qnas_jax.export.runtimes import Runtime
from qnas_jax.nn.deeplab import DeepLabV3
from qnas_jax.report import files
from qnas_jax.setting import CLASSES, Setting
from qnas_jax.stages import networks

logger = logging.getLogger(__name__)

QUANTIZED, FLOAT = "model", "model_float"  # a suffix follows
MEASURED, FAKE = "jax_int8", "jax_quantized"  # `metrics.json` has the mIoU of the first
LEAST_AGREEMENT = 99.9  # percent of pixels; below it a file is warned of
CODE_IMAGES = 2  # validation pictures that are compared code by code


def export(setting: Setting, source: Stage, model: DeepLabV3, subnet: space.Subnet) -> Stage:
    """Writes a network's files and compares them with the network.

    Args:
      setting: The run's.
      source: The stage that trained and measured the network.
      model: The network.
      subnet: Its bitwidths.
    """
    stage = Stage(setting.workdir / "export" / source.folder.name, {"network": source.hash})
    if stage.done:
        return stage
    variables, quant = networks.measured(setting, source, model, subnet)
    shape = setting.val_data[0][0].shape
    network = fold.of_network(model, variables, quant, shape)
    floats = fold.of_network(model, variables, None, shape)
    found, written = runtimes.installed(), {}
    for runtime in found:
        _write(stage.folder / (FLOAT + runtime.suffix), runtime.file(floats))
        name, data = QUANTIZED + runtime.suffix, runtime.file(network)
        _write(stage.folder / name, data)
        written[name] = describe.File(runtime.file_format, len(data))
    artefact.write_json(stage.folder / "model.json", describe.describe(network, written))
    computed = _compare(setting, stage, model, {**variables, "quant": quant}, network, found)
    artefact.write_json(stage.folder / "parity.json", computed)
    stage.finish()
    for name, file in written.items():
        kilobytes, miou = file.file_bytes / 1e3, computed["miou"][name]
        logger.info("%s: %s has %.1f kB, mIoU %.2f %%", stage.folder.name, name, kilobytes, miou)
        agreement = computed["agreement"][MEASURED][name]
        if agreement < LEAST_AGREEMENT:
            told = "%s: %s gives only %.2f %% of the pixels the simulated class; see docs/export.md"
            logger.warning(told, stage.folder.name, name, agreement)
    if not runtimes.has_litert():
        message = "%s: no LiteRT file; pip install -e '.[litert]', delete %s, and repeat"
        logger.info(message, stage.folder.name, stage.folder)
    return stage


def _write(path: pathlib.Path, data: bytes) -> None:
    with artefact.writing(path) as file:
        file.write(data)


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
        miou = artefact.read_json(place)["miou"]
        files = [name for name in miou if name.startswith(f"{QUANTIZED}.")]
        for reference, file in itertools.product((MEASURED, FAKE), files):
            parity.check(place, miou, file, reference, max_miou_drop)


def told(folders: Sequence[pathlib.Path], latencies: Mapping[str, Any]) -> dict[str, files.File]:
    """What the report tells of each network's file for ONNX Runtime.

    Args:
      folders: Where the networks were exported to.
      latencies: Of the same networks, by name; see `latencies.compare`.
    """
    name, found = QUANTIZED + ".onnx", {}
    for folder, (network, timed) in zip(folders, latencies.items(), strict=True):
        parity_, model = (
            artefact.read_json(folder / file) for file in ("parity.json", "model.json")
        )
        found[network] = files.File(
            file_bytes=model["file_bytes"][name],
            stored_bytes=model["file_bytes"][name] - model["graph_bytes"][name],
            miou=parity_["miou"][name],
            agreement=parity_["agreement"][MEASURED][name],
            float_ms=timed["float"]["latency_ms"],
            quantized_ms=timed["quantized"]["latency_ms"],
        )
    return found


def _compare(
    setting: Setting,
    stage: Stage,
    model: DeepLabV3,
    variables: PyTree,
    network: Graph,
    found: tuple[Runtime, ...],
) -> dict[str, Any]:
    """What `parity.json` holds."""
    predict = segment.predictor(model)
    # Put to the same place, both are served by one program.
    device = jax.local_devices()[0]
    rounded = jax.device_put(fold.with_bias_codes(variables, network), device)
    variables = jax.device_put(variables, device)
    floats = {name: leaves for name, leaves in variables.items() if name != "quant"}
    sources: dict[str, segment.ClassMaps] = {
        "jax_fp32": functools.partial(predict, floats),
        FAKE: functools.partial(predict, variables),
        "simulation": functools.partial(predict, rounded),
        MEASURED: simulate.simulator(network),
    }
    for runtime in found:
        for name in (QUANTIZED + runtime.suffix, FLOAT + runtime.suffix):
            sources[name] = runtime.class_maps(stage.folder / name)
    batch = setting.config.run.eval_batch
    miou, agreement = parity.class_maps(sources, setting.val_data, batch, CLASSES)
    images = stacked(setting.val_data, range(min(CODE_IMAGES, len(setting.val_data)))).images
    rows = _codes(model, rounded, network, found, images)
    return {
        "images": len(setting.val_data),
        "miou": miou,
        "agreement": agreement,
        "code_images": len(images),
        "codes": dict(parity.summary(rows)),
        "layers": rows,
    }


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
