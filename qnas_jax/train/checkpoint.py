"""Checkpoints of training states: saved atomically, readable after a kill at any moment."""

import contextlib
import dataclasses
import hashlib
import pathlib
import shutil
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from qnas_jax.errors import InputError
from qnas_jax.run import artefacts, disk, parallel
from qnas_jax.run.stage import is_finished, reading

Tree = TypeVar("Tree")

SPARE_BYTES = 1_000_000  # for the metadata of a checkpoint

# Orbax numbers operations for the whole process: where those of two threads overlap, one may wait
# five minutes for a signal under the number of the other.
_one_at_a_time = threading.Lock()


def open_folder(folder: pathlib.Path) -> Any:
    """Opens an Orbax checkpoint manager that keeps the latest checkpoint of a folder."""
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True)
    if jax.process_count() > 1:  # processes save independently, without a barrier
        folder.mkdir(parents=True, exist_ok=True)
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(),
            active_processes={jax.process_index()},
            barrier_sync_key_prefix=f"process{jax.process_index()}",
        )
        options = dataclasses.replace(options, create=False, multiprocessing_options=alone)
    handler = ocp.StandardCheckpointHandler()
    return ocp.CheckpointManager(folder.absolute(), item_handlers=handler, options=options)


@contextlib.contextmanager
def opened(folder: pathlib.Path) -> Iterator[Any]:
    """Orbax's manager of the checkpoints in a folder, closed at the end."""
    manager = open_folder(folder)
    try:
        yield manager
    finally:
        with _writing(manager):
            manager.close()


def save(manager: Any, step: int, state: Any) -> None:
    """Saves the state after `step` steps; in the main thread in the background.

    Raises:
      InputError: The disk is too full.
    """
    import orbax.checkpoint as ocp

    # Checked first, because a save that fails halfway reports each file at length.
    need = SPARE_BYTES + 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(manager.directory).free
    if free < need:
        raise InputError(
            f"{manager.directory}: the disk has {free / 1e6:.1f} MB left, saving takes up to "
            f"{need / 1e6:.1f} MB; free some space, then resume with the same command"
        )
    with _writing(manager), _one_at_a_time:
        manager.save(step, args=ocp.args.StandardSave(_plain(state)))
        if threading.current_thread() is not threading.main_thread():  # others train beside it
            manager.wait_until_finished()


def wait(manager: Any) -> None:
    """Waits until what was saved is on the disk."""
    with _writing(manager):
        manager.wait_until_finished()


@contextlib.contextmanager
def _writing(manager: Any) -> Iterator[None]:
    """Within, an error of the system that Orbax wraps is raised as it was."""
    try:
        yield
    except Exception as error:
        found = disk.fault(error)
        if found is None:
            raise
        found.filename = found.filename or str(manager.directory)
        raise found from None


def restore(manager: Any, like: Tree) -> tuple[int, Tree]:
    """Returns the latest step and its state, or 0 and `like` if nothing is saved.

    Raises:
      InputError: The checkpoint is damaged, or its structure or shapes differ from `like`.
    """
    import orbax.checkpoint as ocp

    step = manager.latest_step()
    if step is None:
        return 0, like
    with _reading(manager, step):
        _check_match(manager.directory, _metadata(manager, step), like)
        with _one_at_a_time:
            return step, manager.restore(step, args=ocp.args.StandardRestore(_plain(like)))


@contextlib.contextmanager
def _reading(manager: Any, step: int) -> Iterator[None]:
    """Within, an error of a damaged checkpoint says what to do."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # Orbax has no error type for damaged files
        damaged = pathlib.Path(manager.directory) / str(step)
        disk.check_readable(damaged, error)
        reason = str(error).splitlines()[0].split(" See full")[0][:120]
        raise InputError(f"{damaged}: cannot be read ({reason}); {_way_out(damaged)}") from None


def _metadata(manager: Any, step: int) -> Any:
    """The tree of a saved state, with a shape and a type for each array."""
    saved = manager.item_metadata(step)
    saved = getattr(saved, "tree", saved)
    if not saved:
        raise ValueError("its metadata is missing")
    return saved


def _way_out(damaged: pathlib.Path) -> str:
    """What to do about a damaged checkpoint.

    An unfinished stage trains again without it. A finished one does not: later stages were made
    from exactly this state, see `stages.fit.plan`.
    """
    stage = damaged.parent.parent
    if is_finished(stage):
        return f"put a copy of it back, or delete {stage} and all that was made from it"
    return "delete it"


@contextlib.contextmanager
def _latest(folder: pathlib.Path) -> Iterator[Any]:
    """Opens a folder that has a checkpoint."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    with opened(folder) as manager:
        if manager.latest_step() is None:
            raise InputError(
                f"{folder}: contains no checkpoint; of a run, name RUN/teacher/checkpoint"
            )
        yield manager


def load_parts(folder: pathlib.Path, like: dict[str, Any]) -> dict[str, Any]:
    """Returns some items of the latest state in a folder, whatever the others are.

    Args:
      folder: The folder of checkpoints.
      like: The items by name, with their structure and shapes.

    Raises:
      InputError: There is no checkpoint, it is damaged, or it does not match `like`.
    """
    with _latest(folder) as manager:
        step = manager.latest_step()
        with _reading(manager, step):
            saved = _metadata(manager, step)
        parts = {name: saved[name] for name in like if name in saved}
        _check_match(manager.directory, parts, like)
        # Here, wherever it was saved: a run of a GPU is read on a CPU.
        here = jax.sharding.SingleDeviceSharding(parallel.team().devices[0])
        whole = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), saved
        )
        restored: Any = restore(manager, {**whole, **like})[1]
        return {name: restored[name] for name in like}


def adopt(folder: pathlib.Path, step: int, state: Any) -> None:
    """Saves a state from elsewhere as the folder's checkpoint at `step`."""
    with opened(folder) as manager:
        save(manager, step, state)
        wait(manager)


def write_arrays(file: pathlib.Path, tree: Any) -> None:
    """Writes a small pytree of arrays to one npz file, keyed by path."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    with artefacts.writing(file) as out:
        np.savez(out, allow_pickle=False, **{_place(path): leaf for path, leaf in leaves})


def read_arrays(file: pathlib.Path, like: Tree) -> Tree:
    """Reads a file of `write_arrays` into a pytree with the structure of `like`.

    Raises:
      InputError: The file is damaged, or it does not match `like`.
    """
    with reading(file) as content, np.load(content) as found:
        arrays = {name: found[name] for name in found.files}
    _check_match(file, arrays, {_place(p): v for p, v in jax.tree_util.tree_leaves_with_path(like)})
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[_place(path)], like)


def content(tree: Any) -> str:
    """A short hash of a tree's arrays, the same wherever they are saved."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
        array = np.asarray(leaf)
        found.update(f"{_place(path)} {array.dtype} {array.shape} ".encode())
        found.update(array.tobytes())
    return found.hexdigest()[:12]


def _plain(state):
    """The state in a form that Orbax saves; with several processes it rejects local JAX arrays."""
    return jax.device_get(state) if jax.process_count() > 1 else state


def _check_match(folder, saved, like) -> None:
    have, want = _shapes(saved), _shapes(like)
    for name in sorted(have.keys() | want.keys()):
        if have.get(name) != want.get(name):
            raise InputError(
                f"{folder}: has {have.get(name, 'nothing')} at {name}, "
                f"the network has {want.get(name, 'nothing')}"
            )


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    """Shape of each leaf by path, of a state or of Orbax's metadata."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_place(path): tuple(leaf.shape) for path, leaf in leaves}


def _place(path) -> str:
    """Path of a leaf in its pytree."""
    return "/".join(str(_name(key)) for key in path)


def _name(key):
    """A tree key as Orbax writes it."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return key
