"""Whole networks, trained and measured: the teacher and the chosen subnets."""

import functools
import logging
import pathlib

import jax
import numpy as np
from jaxtyping import PyTree

from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.export import fold, simulate, tie_free
from qnas_jax.nn import init, supernet, trace
from qnas_jax.nn.deeplab import DeepLabV3
from qnas_jax.run import artefacts
from qnas_jax.run.config import Config
from qnas_jax.run.stage import Stage, is_begun, is_finished
from qnas_jax.search import front
from qnas_jax.stages import measure
from qnas_jax.stages.experiment import CLASSES, Purpose, Setting
from qnas_jax.stages.fit import fit
from qnas_jax.train import checkpoint, loop, supervised

logger = logging.getLogger(__name__)


def teacher_stage(setting: Setting) -> Stage:
    """Where the teacher lies, or is to lie."""
    return _teacher_stage(setting, _given_teacher(setting))


def _teacher_stage(setting: Setting, given: supervised.TrainState | None) -> Stage:
    config = setting.config
    content = checkpoint.content(given.variables()) if given else ""
    made_from = {
        "data": setting.data_mark(),
        "network": config.network,
        "train": config.train,
        "teacher": {**artefacts.plain(config.teacher), "checkpoint": content},
        "quantize": config.quantize,
        "seed": config.seed,
    }
    try:
        return Stage(setting.workdir / "teacher", made_from)
    except InputError as error:
        if "(data.content: " not in str(error):
            raise
        raise InputError(
            f"{error}; data.content is a hash of the images at data.root={config.data.root} "
            "(names, sizes, some bytes; None: an older version, which took the path)"
        ) from None


def _given_teacher(setting: Setting) -> supervised.TrainState | None:
    """The teacher that the config names, if it names one."""
    config, own = setting.config, setting.workdir / "teacher"
    if not config.teacher.checkpoint:
        return None
    given = pathlib.Path(config.teacher.checkpoint)
    if is_begun(given.parent) and not is_finished(given.parent):
        raise InputError(
            f"teacher.checkpoint={given}: its run did not finish the teacher; "
            "the same command goes on with it"
        )
    if not given.is_dir() and is_finished(own):
        raise InputError(
            f"teacher.checkpoint={given}: no such folder; "
            f"this run has a copy of it: set it to {own / 'checkpoint'}"
        )
    optimizer = _optimizer(config)
    shapes = jax.eval_shape(lambda: supervised.fresh_state(_fresh_teacher(setting), optimizer))
    zeros = jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype)), shapes)
    return checkpoint.load(given, zeros)


def _fresh_teacher(setting: Setting) -> PyTree:
    shape = (1, *setting.config.train.crop, 3)
    return init.initialize(setting.teacher(), setting.key(Purpose.TEACHER_INIT), shape)


def train_teacher(setting: Setting) -> tuple[Stage, PyTree]:
    """Trains the teacher, or takes the one that the config names; measures it."""
    given = _given_teacher(setting)
    config, stage = setting.config, _teacher_stage(setting, given)
    stage.begin()
    model, fresh = setting.teacher(), _fresh_teacher(setting)
    if given and not stage.done:
        checkpoint.adopt(stage.folder / "checkpoint", config.train.steps, given)
        logger.info("teacher: taken from %s", config.teacher.checkpoint)
    variables = _train_network(setting, stage, model, fresh, Purpose.TEACHER_TRAIN, "teacher")
    subnet = space.format_subnet(setting.teacher_subnet())
    _measure(setting, stage, model, variables, fresh["quant"], {"subnet": subnet})
    return stage, variables


def subnet_stage(setting: Setting, distilled: Stage, subnet: str) -> Stage:
    """Where a retrained subnet lies, or is to lie."""
    made_from = {
        "supernet": distilled.hash,
        "subnet": subnet,
        "init": setting.config.retrain.init,
    }
    return Stage(setting.workdir / "retrain" / _folder_name(subnet), made_from)


def retrain(
    setting: Setting,
    distilled: Stage,
    teacher: PyTree,
    params: list[supernet.Params],
    point: front.Point,
    title: str,
) -> Stage:
    """Trains a subnet to the end and measures it, in float and quantized."""
    config, stage = setting.config, subnet_stage(setting, distilled, point.subnet)
    if stage.done:
        return stage
    stage.begin()
    subnet = space.parse_subnet(point.subnet)
    model = setting.student(subnet)
    fresh = init.initialize(model, setting.key(Purpose.RETRAIN_INIT), (1, *config.train.crop, 3))
    quant = trace.with_bits(fresh["quant"], subnet)
    if config.retrain.init == "supernet":
        paths = [tuple(choice.op for choice in block) for block in subnet]
        blocks = {
            f"block{i + 1}": supernet.path_params(params[i], path) for i, path in enumerate(paths)
        }
        fresh = supernet.with_blocks(fresh, teacher, blocks)
    variables = _train_network(setting, stage, model, fresh, Purpose.RETRAIN_TRAIN, title)
    _measure(setting, stage, model, variables, quant, {"subnet": point.subnet})
    return stage


def _folder_name(subnet: str) -> str:
    """The subnet, or its beginning and a hash where file systems would refuse its length."""
    return subnet if len(subnet) <= 200 else f"{subnet[:180]}-{artefacts.digest(subnet)}"


def _train_network(setting, stage, model, fresh, purpose, title) -> PyTree:
    """Trains a network as `config.train` says; returns its variables."""
    how = setting.config.train
    optimizer = _optimizer(setting.config)
    step = supervised.train_step(model, optimizer, setting.key(purpose), how.compute)
    state = supervised.fresh_state(fresh, optimizer)
    rate = supervised.polynomial(how.lr, how.steps, how.power)
    whole = loop.Watched("the network", "loss", rate, "train.lr", lambda state: state)
    steps = loop.several(step)
    return fit(setting, stage, steps, state, how, title, [whole]).variables()


def _optimizer(config: Config):
    how = config.train
    return supervised.sgd(how.lr, how.steps, how.power, how.momentum, how.weight_decay)


def _measure(setting: Setting, stage: Stage, model: DeepLabV3, variables, quant, extra) -> None:
    """Writes `metrics.json` and some predictions; finishes the stage."""
    if stage.done:
        return
    quant = _calibrated(setting, stage, model, variables, quant)
    shape = setting.val_data[0][0].shape
    sources = {
        "fp32": functools.partial(supervised.predictor(model), variables),
        # What the files compute; fake quantization would leave the biases real.
        "quantized": simulate.simulator(fold.of_network(model, variables, quant, shape)),
    }
    batch = setting.config.run.eval_batch
    found, samples = measure.accuracy(sources, setting.val_data, batch, CLASSES)
    sizes = measure.sizes(model, quant, shape)
    with artefacts.writing(stage.folder / "samples.npz") as file:
        np.savez_compressed(file, allow_pickle=False, **samples)
    artefacts.write_json(stage.folder / "metrics.json", {**extra, **found, **sizes})
    stage.finish()
    logger.info(
        "%s: mIoU %.2f %% in float, %.2f %% quantized, %.1f kB",
        stage.folder.name,  # "teacher", or the subnet
        found["miou_fp32"],
        found["miou_quantized"],
        sizes["size_bytes"] / 1e3,
    )


def _calibrated(setting: Setting, stage: Stage, model: DeepLabV3, variables, quant) -> PyTree:
    """The policy with its ranges, which are found once and kept in `quant.npz`."""
    file, how = stage.folder / "quant.npz", setting.config.quantize
    if not file.exists():
        starts = range(0, how.images, how.images_per_pass)
        chunks = (range(s, min(s + how.images_per_pass, how.images)) for s in starts)
        batches = (setting.training_crops(chunk) for chunk in chunks)
        found = supervised.calibrated(model, variables, quant, batches)
        network = fold.of_network(model, variables, found, setting.val_data[0][0].shape)
        found = tie_free.with_agreed_sums(network, found)
        checkpoint.write_arrays(file, found)
    return checkpoint.read_arrays(file, quant)


def measured(
    setting: Setting, stage: Stage, model: DeepLabV3, subnet: space.Subnet
) -> tuple[PyTree, PyTree]:
    """Variables and calibrated policy of a network whose stage is finished."""
    config = setting.config
    key = setting.key(Purpose.TEACHER_INIT)  # what it draws is overwritten
    fresh = init.initialize(model, key, (1, *config.train.crop, 3))
    state = supervised.fresh_state(fresh, _optimizer(config))
    variables = checkpoint.load(stage.folder / "checkpoint", state).variables()
    quant = trace.with_bits(fresh["quant"], subnet)
    return variables, _calibrated(setting, stage, model, variables, quant)
