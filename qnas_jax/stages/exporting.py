"""Networks as files that deploy, and whether they compute what was measured."""

import logging

from jaxtyping import PyTree

from qnas_jax import artefact, segment, space
from qnas_jax.artefact import Stage
from qnas_jax.data.batching import stacked
from qnas_jax.export import describe, fold, interpret, parity, run
from qnas_jax.export import onnx as onnx_file
from qnas_jax.export.graph import Graph
from qnas_jax.nn.deeplab import DeepLabV3
from qnas_jax.setting import CLASSES, Setting
from qnas_jax.stages import networks

logger = logging.getLogger(__name__)

QUANTIZED, FLOAT = "model.onnx", "model_float.onnx"
SIMULATED = "jax_quantized"  # as `metrics.json` has it
CODE_IMAGES = 2  # validation pictures that are compared code by code


def export(setting: Setting, source: Stage, model: DeepLabV3, subnet: space.Subnet) -> Stage:
    """Writes a network's files and compares them with the network.

    Args:
      setting: The run's.
      source: The stage that trained and measured the network.
      model: The network.
      subnet: Its bitwidths.

    Raises:
      InputError: The quantized file loses more mIoU than `export.max_miou_drop`.
    """
    how = setting.config.export
    stage = Stage(
        setting.workdir / "export" / source.folder.name,
        {"network": source.hash, "export": how},
    )
    if stage.done:
        return stage
    variables, quant = networks.measured(setting, source, model, subnet)
    shape = setting.val_data[0][0].shape
    network = fold.of_network(model, variables, quant, shape)
    floats = fold.of_network(model, variables, None, shape)
    for name, graph in ((QUANTIZED, network), (FLOAT, floats)):
        with artefact.writing(stage.folder / name) as file:
            file.write(onnx_file.model(graph).SerializeToString())
    file_bytes = (stage.folder / QUANTIZED).stat().st_size
    artefact.write_json(stage.folder / "model.json", describe.describe(network, file_bytes))
    found = _compare(setting, stage, model, variables, quant, network)
    artefact.write_json(stage.folder / "parity.json", found)
    parity.check(found["miou"], QUANTIZED, SIMULATED, how.max_miou_drop)
    stage.finish()
    logger.info(
        "%s: %s has %.1f kB, mIoU %.2f %%",
        stage.folder.name,
        QUANTIZED,
        file_bytes / 1e3,
        found["miou"][QUANTIZED],
    )
    return stage


def _compare(
    setting: Setting,
    stage: Stage,
    model: DeepLabV3,
    variables: PyTree,
    quant: PyTree,
    network: Graph,
) -> dict:
    """What `parity.json` holds."""
    predict = segment.predictor(model)
    rounded = {**fold.with_bias_codes(variables, network), "quant": quant}
    files = {name: run.session(stage.folder / name) for name in (QUANTIZED, FLOAT)}
    sources = {
        "jax_fp32": lambda images: predict(variables, images),
        SIMULATED: lambda images: predict({**variables, "quant": quant}, images),
        "simulation": lambda images: predict(rounded, images),
        "integer": lambda images: interpret.classes(interpret.run(network, images), network),
        QUANTIZED: lambda images: run.run(files[QUANTIZED], images),
        FLOAT: lambda images: run.run(files[FLOAT], images),
    }
    batch = setting.config.run.eval_batch
    miou, agreement = parity.class_maps(sources, setting.val_data, batch, CLASSES)
    images = stacked(setting.val_data, range(min(CODE_IMAGES, len(setting.val_data)))).images
    simulated = parity.simulate(model, network, rounded, images)
    inner = [name for name in simulated if name != network.x.name]
    ready = run.session(run.with_outputs(onnx_file.model(network), inner))
    computed = {"integer": interpret.run(network, images), QUANTIZED: run.tensors(ready, images)}
    rows = parity.layers(network, simulated, computed)
    return {
        "images": len(setting.val_data),
        "miou": miou,
        "agreement": agreement,
        "code_images": len(images),
        "codes": dict(parity.summary(rows)),
        "layers": rows,
    }
