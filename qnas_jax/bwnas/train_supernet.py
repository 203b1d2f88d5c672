"""Distills the supernet from the teacher."""

import concurrent.futures
import logging
import operator
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import PyTree

from qnas_jax import space
from qnas_jax.bwnas import adapters, balance, distill, distill_pmap
from qnas_jax.bwnas.config import Space, Supernet
from qnas_jax.data.batching import Dataset, central_crops
from qnas_jax.nn import inherit, init, supernet, weights
from qnas_jax.run import artefacts, log, parallel, processes
from qnas_jax.run.stage import Stage, is_finished, read_json, unreadable
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


class Ahead(NamedTuple):
    """The supernet's steps on one device, which are compiled before they are needed.

    Attributes:
      recipe: How the blocks are trained.
      steps: The program, of `loop.program`.
      compiled: Done when it is compiled.
    """

    recipe: distill.Recipe
    steps: Any
    compiled: concurrent.futures.Future[Any]


def compile_ahead(
    workdir: pathlib.Path, problem: Problem, training: Training, how: Supernet
) -> Ahead | None:
    """Begins to compile the steps in a thread, while the teacher is made; see `train_supernet`.

    Compilation uses one core and may take longer than the steps.

    Returns:
      None if no step is left, several devices share it, or the teacher gets adapters.
    """
    team, folder = parallel.team(), workdir / "supernet"
    several = team.count * len(team.devices) > 1
    trained = is_finished(folder) or (folder / "checkpoint" / str(how.steps)).is_dir()
    if several or trained or adapters.are_needed(problem):
        return None
    recipe = _recipe(problem, how, training.seed)
    steps, place = loop.program(distill.train_step(recipe)), SingleDeviceSharding(team.devices[0])

    def placed(leaf: Any) -> jax.ShapeDtypeStruct:
        weak = leaf.weak_type
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place, weak_type=weak)

    def run() -> None:
        key = jax.random.key(0)
        shape = 1, *training.train.crop, 3
        fresh = jax.eval_shape(lambda: init.initialize(problem.teacher, key, shape))
        variables = {kind: fresh[kind] for kind in weights.KINDS}
        state = jax.eval_shape(lambda: distill.fresh_state(problem.space, recipe.optimizers, key))
        given = jax.tree.map(placed, ((variables,), state))
        at_once = min(training.run.per_dispatch, training.run.save_every, how.steps)
        batch = batches(problem.train, training, how.batch)(0)
        images, labels = (np.stack([array] * at_once) for array in batch)
        # For arguments as `loop.fit` passes them.
        steps.lower(*given, images, labels, np.arange(at_once, dtype=np.int32)).compile()

    pool = concurrent.futures.ThreadPoolExecutor(1)
    compiled = pool.submit(run)
    pool.shutdown(wait=False)
    return Ahead(recipe, steps, compiled)


def train_supernet(
    workdir: pathlib.Path,
    problem: Problem,
    training: Training,
    chosen: Space,
    how: Supernet,
    teacher: Stage,
    variables: PyTree,
    ahead: Ahead | None = None,
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
      ahead: The steps, if they are compiled already.

    Returns:
      The stage of the supernet, and the parameters of each block.
    """
    seed, searched = training.seed, problem.space
    with processes.first_goes_first("supernet"):
        stage = supernet_stage(workdir, teacher, chosen, how, seed)
        if parallel.is_first():
            stage.begin()
    recipe = ahead.recipe if ahead else _recipe(problem, how, seed)
    key = experiment.key(seed, Purpose.SUPERNET_INIT)
    drawn = distill.init_supernet(key, searched)
    if how.init == "teacher":
        encoder = variables["params"]["encoder"]
        layers = (encoder[f"block{i + 1}"] for i in range(len(drawn)))
        drawn = tuple(map(inherit.block_params, drawn, layers))
    state = distill.init_state(drawn, recipe.optimizers)
    team, read = parallel.team(), None
    if team.count * len(team.devices) == 1 or stage.done:
        if ahead:
            ahead.compiled.result()
        program = ahead.steps if ahead else loop.program(distill.train_step(recipe))
        steps, layout = loop.with_constants(program, variables), loop.AS_SAVED
    else:
        images = batches(problem.train, training, how.batch, range(how.batch // how.parts))
        part = images(0).images
        steps, layout, read = _on_all_devices(stage, recipe, variables, state, part, how.batch)
    planned = plan(stage, training, "supernet", how.steps, _watched(how))
    make_batch = batches(problem.train, training, how.batch, read)
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
    stage: Stage,
    recipe: distill.Recipe,
    variables: PyTree,
    state: distill.State,
    part: np.ndarray,
    batch: int,
) -> distill_pmap.Divided:
    """The steps over the devices of all processes; `part` is one part of a batch."""
    devices = parallel.first_devices(len(parallel.team().devices))
    costs = _costs(stage, recipe, variables, state, part)
    processes.connect(devices)
    owners = balance.lay_out(costs, recipe.parts, len(devices))
    idle = len(devices) - len(np.unique(owners))
    unbalanced = balance.imbalance(costs, owners, len(devices))
    logger.info(
        "supernet: %d blocks x %d parts on %d devices, the slowest takes %.2f times the mean%s",
        *(owners.shape[1], recipe.parts, len(devices), unbalanced),
        f" ({idle} without work; raise supernet.parts)" if idle else "",
    )
    return distill_pmap.train_step(recipe, variables, owners, devices, batch)


def _costs(stage: Stage, recipe, variables, state, part) -> balance.Costs:
    """Measured once in a run, by the first process: all must lay out the same."""
    file, kept = stage.folder / "costs.json", np.zeros((len(balance.Costs._fields), len(state)))
    with processes.first_goes_first("measured"):
        if parallel.is_first() and not file.exists():
            begin = time.monotonic()
            measured = distill_pmap.measured(recipe, variables, state, part)
            logger.info("supernet: blocks were timed in %.0f s", time.monotonic() - begin)
            artefacts.write_json(file, measured._asdict())
        if parallel.is_first():
            kept = _read_costs(file, kept.shape)
    # Not from the file: it may not be visible to all at once.
    return balance.Costs(*map(tuple, processes.gathered("costs", kept)[0].tolist()))


def _read_costs(file: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray:
    found = read_json(file, *balance.Costs._fields)
    try:
        costs = np.array([found[name] for name in balance.Costs._fields], float)
    except (TypeError, ValueError) as error:
        raise unreadable(file, error) from None
    if costs.shape != shape or not (np.isfinite(costs) & (costs >= 0)).all():
        raise unreadable(file, ValueError("it must have seconds for each block"))
    return costs


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
