"""The programs of QA-BWNAS's stages, for the shapes that the stages call them with."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qnas_jax import space
from qnas_jax.bwnas import distill
from qnas_jax.bwnas.config import Config
from qnas_jax.bwnas.lut import evaluate, mbconv_int8
from qnas_jax.data import labels
from qnas_jax.export import fold, simulate
from qnas_jax.kernels.int8 import Kernel
from qnas_jax.nn import init, mbconv_float, supernet
from qnas_jax.nn.fake_quant import PIXEL_RANGE
from qnas_jax.nn.trace import trace
from qnas_jax.nn.units import pixels
from qnas_jax.profiling import memory
from qnas_jax.profiling.memory import Memory
from qnas_jax.quant import calibrate
from qnas_jax.stages.experiment import Networks, networks
from qnas_jax.stages.fit import optimizer_of
from qnas_jax.tasks import segmentation
from qnas_jax.tasks.task import Task
from qnas_jax.train import learned, loop, supervised

PARTS = (1, 2, 4, 8)
PER_PASS = (8, 4, 2, 1)
FULL = (1024, 2048)
XLA: Kernel = "XLA"
BITS = jax.ShapeDtypeStruct((), jnp.int32)


class Program(NamedTuple):
    """A function that a stage jits.

    Attributes:
      function: The function.
      arguments: Its arguments, pytrees of `jax.ShapeDtypeStruct`.
      donated: The numbers of the arguments whose memory it may use again.
      held: Bytes that the stage holds besides.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    donated: tuple[int, ...] = ()
    held: int = 0

    def memory(self) -> Memory:
        """What it needs, by count."""
        found = memory.of_program(self.function, *self.arguments, donated=self.donated)
        return found._replace(arguments=found.arguments + self.held)


class Case(NamedTuple):
    """A config, its networks, and the shapes of the teacher's variables."""

    given: Config
    task: Task
    built: Networks
    fresh: Any


def case_of(given: Config) -> Case:
    """The case of a config of segmentation."""
    task = segmentation.task(labels.NAMES)
    built = networks(given.network, given.space, task)
    shape = (1, *given.train.crop, 3)
    fresh = jax.eval_shape(lambda: init.initialize(built.teacher, jax.random.key(0), shape))
    return Case(given, task, built, fresh)


def stages(case: Case) -> Iterator[tuple[str, Callable[[], Program]]]:
    """Yields the name of each program, and what makes it."""
    batch, crop = case.given.train.batch, case.given.train.crop
    at = f"{crop[0]} x {crop[1]}"
    for compute in ("float32", "bfloat16"):
        title = f"training step, {batch} images of {at}, {compute}"
        yield title, functools.partial(training, case, compute)
    yield f"QAT step, {batch} images of {at}, float32", functools.partial(aware, case)
    for parts in (p for p in PARTS if case.given.supernet.batch % p == 0):
        title = f"supernet step, {case.given.supernet.batch} images of {at}, parts={parts}"
        yield title, functools.partial(distilled, case, parts, "float32")
    yield f"{title}, bfloat16", functools.partial(distilled, case, parts, "bfloat16")
    for size in (crop, FULL):
        for images in PER_PASS:
            title = f"ranges, images_per_pass={images} of {size[0]} x {size[1]}"
            yield title, functools.partial(ranges, case, images, size)
    count = case.given.lut.calibration_images
    for compute in ("int8", "float32"):
        title = f"LUT, calibration_images={count} of {at}, {compute}"
        yield title, functools.partial(table_unit, case, count, compute, True)
        for images in PER_PASS:
            title = f"LUT, images_per_pass={images} of {at}, {compute}"
            yield title, functools.partial(table_unit, case, images, compute)
    for size in (crop, FULL):
        title = f"1 image of {size[0]} x {size[1]}"
        yield f"evaluation in float, {title}", functools.partial(in_float, case, size)
        yield f"evaluation in integers, {title}", functools.partial(in_integers, case, size)


def _shapes(count, size):
    """Images and labels."""
    image = jax.ShapeDtypeStruct((count, *size, 3), jnp.uint8)
    return image, jax.ShapeDtypeStruct((count, *size), jnp.uint8)


def _steps(step, constants, state, count, size) -> Program:
    """One step, as `loop.fit` runs it."""
    given = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), _shapes(count, size)
    )
    number = jax.ShapeDtypeStruct((1,), jnp.int32)
    return Program(loop.program(step), (constants, state, *given, number), donated=(1,))


def training(case: Case, compute: str) -> Program:
    """A step of the teacher; a subnet's is smaller."""
    how, key = case.given.train, jax.random.key(0)
    optimizer = optimizer_of(how, how.lr)
    step = supervised.train_step(case.built.teacher, case.task.loss, optimizer, key, compute)
    state = jax.eval_shape(lambda fresh: supervised.fresh_state(fresh, optimizer), case.fresh)
    return _steps(step, (), state, how.batch, how.crop)


def aware(case: Case) -> Program:
    """A step of quantization-aware training of the teacher, without a distillation."""
    how = dataclasses.replace(case.given.train, weight_decay=0.0)
    optimizer = optimizer_of(how, how.lr)
    traced = trace(case.built.teacher, (*how.crop, 3))

    def quantize(params, policy):
        return learned.quantize(traced, params, policy, 0.01)

    def begin(fresh):
        params = learned.begin(traced, fresh["params"], fresh["quant"])
        return supervised.fresh_state({**fresh, "params": params}, optimizer)

    loss, key = case.task.loss, jax.random.key(0)
    step = supervised.policy_step(case.built.teacher, loss, optimizer, key, quantize)
    state = jax.eval_shape(begin, case.fresh)
    return _steps(step, (case.fresh["quant"],), state, how.batch, how.crop)


def distilled(case: Case, parts: int, compute: str) -> Program:
    """A step of the supernet, the teacher's forward pass included."""
    how, searched = case.given.supernet, case.built.space
    recipe = distill.Recipe(
        supervised.features(case.built.teacher),
        searched,
        tuple(optimizer_of(how, lr) for lr in how.lr),
        distill.SAMPLING[how.sampling],
        jax.random.key(0),
        parts,
        compute,
    )
    state = jax.eval_shape(
        lambda: distill.fresh_state(searched, recipe.optimizers, jax.random.key(0))
    )
    teacher = {name: case.fresh[name] for name in ("params", "batch_stats")}
    step = distill.train_step(recipe)
    return _steps(step, (teacher,), state, how.batch, case.given.train.crop)


def ranges(case: Case, count: int, size: tuple[int, int]) -> Program:
    """A pass of the quantized teacher that widens its ranges; see `supervised.calibrated`."""

    def widened(variables, images):
        return case.built.teacher.apply(variables, pixels(images), mutable=["quant"])[1]["quant"]

    return Program(widened, (case.fresh, _shapes(count, size)[0]))


def in_float(case: Case, size: tuple[int, int]) -> Program:
    """The classes of an image's pixels in float."""
    variables = {name: case.fresh[name] for name in ("params", "batch_stats")}
    run = supervised.predictor(case.built.teacher, case.task.predict)
    return Program(run, (variables, _shapes(1, size)[0]))


def in_integers(case: Case, size: tuple[int, int]) -> Program:
    """The classes of pixels as a file computes them, for a network with random weights.

    The weights are constants of the program, which count as temporary here.
    """
    rng = np.random.default_rng(0)

    def made_up(path, leaf):
        match path[-1].key:
            case "range" if path[-2].key == "input":
                return np.array(PIXEL_RANGE, np.float32)
            case "range":
                return np.broadcast_to(np.array([0, 6], np.float32), leaf.shape)
            case "kernel":
                return rng.normal(size=leaf.shape).astype(leaf.dtype)
            case name:
                return np.full(leaf.shape, 8 if name.endswith("bits") else 1, leaf.dtype)

    variables = dict(jax.tree_util.tree_map_with_path(made_up, case.fresh))
    quant = variables.pop("quant")
    logits = simulate.logits(
        fold.fold(case.built.teacher, variables, quant, (*size, 3), resize=True)
    )
    return Program(lambda images: case.task.predict(logits(images), size), (_shapes(1, size)[0],))


def table_unit(case: Case, images: int, compute: str, calibrates: bool = False) -> Program:
    """The largest pass over a prefix tree, one node at once.

    Args:
      case: The config and its networks.
      images: Those of a pass.
      compute: The arithmetic.
      calibrates: Whether the passes find ranges; else they find the noise.
    """
    stride, found = case.given.network.stem_stride, []
    size = tuple(-(-side // stride) for side in case.given.train.crop)
    for block in case.built.space.blocks:
        shape = images, *size, block.in_channels
        found += _passes(case.built.space.ops, block, shape, compute, calibrates)
        size = tuple(-(-side // block.stride) for side in size)
    return max(found, key=lambda one: one.memory().total)


def _passes(ops, block: space.Block, shape, compute: str, calibrates: bool) -> Iterator[Program]:
    """The passes of each layer; those of the layers before it hold their results meanwhile."""
    params = jax.eval_shape(lambda: supernet.init_block(jax.random.key(0), block, ops))
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    sides = (-(-side // block.stride) for side in shape[1:3])
    target = jax.ShapeDtypeStruct((shape[0], *sides, block.channels), jnp.float32)
    begin = evaluate.int8_input if compute == "int8" else evaluate.float_input
    limits = jax.ShapeDtypeStruct((2,), jnp.float32)
    node, held = jax.eval_shape(begin, x, BITS, limits), _nbytes((x, target))
    for number in range(block.depth):
        layer = mbconv_float.layer_spec(block, number, ops, calibrate.min_max)
        run, given, outputs = _pass(layer, params[f"layer{number}"], node, compute, calibrates)
        if number + 1 == block.depth and not calibrates:
            last = evaluate.nsr_int8 if compute == "int8" else evaluate.nsr_float
            run = functools.partial(last, *run.args)
            given = *given, target, jax.ShapeDtypeStruct((block.channels,), jnp.float32)
        yield Program(run, given, held=held)
        held += _nbytes(outputs)
        node = jax.tree.map(lambda y: jax.ShapeDtypeStruct((1, *y.shape[1:]), y.dtype), outputs)


def _pass(layer: mbconv_float.LayerSpec, params, node, compute: str, calibrates: bool):
    """A pass over a layer: its function, its arguments, and the outputs of all ops."""
    if compute == "int8":
        functions, how = (evaluate.calibrate_layer_int8, evaluate.run_layer_int8), (XLA, layer)
        ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), params)
        weights: Any = mbconv_int8.gather_codes(ones, layer.ops, XLA, 8)
    else:
        functions, how = (evaluate.calibrate_layer_float, evaluate.run_layer_float), (layer,)
        gather = functools.partial(mbconv_float.gather_weights, ops=layer.ops)
        weights = jax.eval_shape(lambda given, bits: gather(given, w_bits=bits), params, BITS)
    calibrate_, run = (functools.partial(function, *how) for function in functions)
    outputs, packed = jax.eval_shape(calibrate_, weights, node, BITS)
    if calibrates:
        return calibrate_, (weights, node, BITS), outputs
    return run, (weights, node, packed), outputs


def _nbytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
