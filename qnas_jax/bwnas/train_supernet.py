"""Distills the supernet from the teacher."""

import logging
import operator
import pathlib
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import PyTree

from qnas_jax import space
from qnas_jax.bwnas import distill, distill_pmap
from qnas_jax.bwnas.config import Space, Supernet
from qnas_jax.data.batching import Dataset, central_crops
from qnas_jax.errors import InputError
from qnas_jax.nn import inherit, supernet
from qnas_jax.nn.trace import trace
from qnas_jax.run import artefacts, log, parallel, processes
from qnas_jax.run.stage import Stage, read_json
from qnas_jax.stages import experiment
from qnas_jax.stages.experiment import Problem, Purpose
from qnas_jax.stages.fit import Training, batches, fit, optimizer_of, plan, rate_of
from qnas_jax.train import loop, supervised

logger = logging.getLogger(__name__)

VALIDATION_IMAGES = 32  # for the NSR after training; at least a batch
RANDOM_PATHS = 10  # paths of each block whose NSR is measured


def supernet_stage(
    workdir: pathlib.Path, teacher: Stage, chosen: Space, how: Supernet, seed: int
) -> Stage:
    """Returns the stage of the supernet.

    Args:
      workdir: The folder of the run.
      teacher: The stage of the teacher.
      chosen: The settings of the search space.
      how: How the supernet is distilled.
      seed: Seed of its weights and of all samples.
    """
    made_from = {
        "teacher": teacher.hash,
        "kernels": chosen.kernels,
        "expansions": chosen.expansions,
        "depths": chosen.depths,
        "supernet": how,
        "seed": seed,
    }
    return Stage(workdir / "supernet", made_from)


def train_supernet(
    workdir: pathlib.Path,
    problem: Problem,
    training: Training,
    chosen: Space,
    how: Supernet,
    teacher: Stage,
    variables: PyTree,
) -> tuple[Stage, list[supernet.Params]]:
    """Distills the teacher into every block of the supernet; measures some of its paths.

    All devices of all processes take part.

    Args:
      workdir: The folder of the run.
      problem: Images, teacher and search space.
      training: Batches, crops and seed.
      chosen: The settings of the search space.
      how: How the supernet is distilled.
      teacher: The stage of the teacher.
      variables: The teacher's variables.

    Returns:
      The stage of the supernet, and the parameters of each block.
    """
    seed, searched = training.seed, problem.space
    with processes.first_goes_first("supernet"):
        stage = supernet_stage(workdir, teacher, chosen, how, seed)
        if parallel.is_first():
            stage.begin()
    recipe = _recipe(problem, how, seed)
    key = experiment.key(seed, Purpose.SUPERNET_INIT)
    drawn = distill.init_supernet(key, searched)
    if how.init == "teacher":
        encoder = variables["params"]["encoder"]
        layers = (encoder[f"block{i + 1}"] for i in range(len(drawn)))
        drawn = tuple(map(inherit.block_params, drawn, layers))
    state = distill.init_state(drawn, recipe.optimizers)
    if jax.device_count() == 1 or stage.done:
        steps, layout = loop.several(distill.train_step(recipe), variables), loop.AS_SAVED
    else:
        crop = training.train.crop
        steps, layout = _on_all_devices(problem.teacher, crop, stage, recipe, variables, state)
    planned = plan(stage, training, "supernet", how.steps, _watched(how))
    make_batch = batches(problem.train, training, how.batch)
    state = fit(workdir, planned, steps, state, make_batch, layout)
    params = [block.params for block in state]
    if parallel.is_first() and not stage.done:
        found = _validate(workdir, problem, training, how, variables, params)
        artefacts.write_json(stage.folder / "nsr.json", found)
        stage.finish()
    processes.wait_for_all("distilled")
    return stage, params


def _recipe(problem: Problem, how: Supernet, seed: int) -> distill.Recipe:
    return distill.Recipe(
        supervised.features(problem.teacher),
        problem.space,
        tuple(optimizer_of(how, lr) for lr in how.lr),
        distill.SAMPLING[how.sampling],
        experiment.key(seed, Purpose.SUPERNET_TRAIN),
        how.parts,
        how.compute,
    )


def _watched(how: Supernet) -> list[loop.Watched]:
    """Each block: its state, its NSR and its learning rate."""
    return [
        loop.Watched(
            f"block {i + 1}",
            distill.metric(i),
            rate_of(how, lr),
            "supernet.lr",
            operator.itemgetter(i),
        )
        for i, lr in enumerate(how.lr)
    ]


def _on_all_devices(
    teacher: nn.Module,
    crop: tuple[int, int],
    stage: Stage,
    recipe: distill.Recipe,
    variables: PyTree,
    state: distill.State,
) -> distill_pmap.Grouped:
    processes, here = jax.process_count(), jax.local_device_count()
    if here * processes != jax.device_count():
        raise InputError(f"{jax.device_count()} devices of {processes} processes: as many of each")
    if recipe.parts % processes:
        raise InputError(
            f"supernet.parts={recipe.parts}: {processes} processes share a batch; "
            f"set a multiple of {processes}"
        )
    encoder = trace(teacher, (*crop, 3)).encoder
    first = next(unit for unit in encoder if unit.site)
    shape = first.in_shape[:2]
    cost = distill_pmap.step_cost(recipe.searched, shape, encoder, _depthwise_cost(stage, shape))
    blocks = len(recipe.searched.blocks)
    groups = distill_pmap.lay_out(cost, blocks, here, recipe.parts // processes)
    used = len(groups.members) * groups.replicas
    names = " | ".join(" ".join(str(i + 1) for i in group) for group in groups.members)
    logger.info(
        "supernet: blocks %s, each group on %d of the %d devices of a process (%d without work)",
        names, groups.replicas, here, here - used,
    )  # fmt: skip
    devices = parallel.first_devices(used)
    return distill_pmap.train_step(recipe, variables, state, groups, devices)


def _depthwise_cost(stage: Stage, shape: tuple[int, int]) -> float:
    """Measured once in a run, by the first process: all must lay out the same groups."""
    file = stage.folder / "depthwise_cost.json"
    with processes.first_goes_first("measured"):
        if not file.exists():
            artefacts.write_json(file, round(distill_pmap.depthwise_cost(*shape), 2))
        cost = read_json(file)
    logger.info("supernet: a depthwise product takes %.1f times as long as a dense one", cost)
    return cost


def images_per_pass(how: Supernet, val: Dataset) -> int:
    """Returns how many validation images share batch statistics; see `_validate`."""
    return min(how.batch, len(val))


def _validate(
    workdir: pathlib.Path,
    problem: Problem,
    training: Training,
    how: Supernet,
    variables: PyTree,
    params: list[supernet.Params],
) -> dict[str, Any]:
    """NSR of each block's largest, smallest and some random paths, on validation images.

    These are central crops, in batches of the training's size, because norms use the statistics
    of the batch in both.
    """
    searched, crop = problem.space, training.train.crop
    per_batch = images_per_pass(how, problem.val)
    count = max(min(VALIDATION_IMAGES, len(problem.val)) // per_batch, 1)
    key = experiment.key(training.seed, Purpose.SUPERNET_PATHS)
    paths = [
        distill.compared_paths(block, searched.ops, RANDOM_PATHS, jax.random.fold_in(key, i))
        for i, block in enumerate(searched.blocks)
    ]
    features = jax.jit(supervised.features(problem.teacher))
    chunks = (range(i * per_batch, (i + 1) * per_batch) for i in range(count))
    maps = (features(variables, central_crops(problem.val, chunk, crop)) for chunk in chunks)
    found = distill.path_nsr(searched, params, maps, paths)
    means = ", ".join(f"{values[2:].mean():.4g}" for values in found)
    logger.info("supernet: NSR of random paths on validation images, by block: %s", means)
    trained = log.read_metrics(workdir, "supernet").get(how.steps, {})
    blocks = [
        {"training": trained.get(distill.metric(i)), **_described(searched.ops, *block)}
        for i, block in enumerate(zip(paths, found, strict=True))
    ]
    return {"images": count * per_batch, "images_per_pass": per_batch, "blocks": blocks}


def _described(ops, paths, values) -> dict[str, Any]:
    """The paths of `distill.compared_paths` and their NSR by what they are."""
    largest, smallest, *random = [
        {"path": space.format_path(tuple(ops[op] for op in path)), "nsr": float(nsr)}
        for path, nsr in zip(paths, values, strict=True)
    ]
    return {"largest": largest, "smallest": smallest, "random": random}
