"""Prepares data sets from their official archives, as TFDS does, without TensorFlow.

Files are written below a temporary name, one shard after the other. A finished shard is kept when
the program is stopped; metadata come last, then the folder gets its name.
"""

import contextlib
import itertools
import json
import math
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any, NamedTuple

from qnas_jax.data.tfds import archives, records
from qnas_jax.data.tfds.find import UNFINISHED
from qnas_jax.errors import InputError
from qnas_jax.run import artefacts, disk
from qnas_jax.run.log import Progress

SHARD_BYTES = 2**28  # about; what a kill may lose
_CONFIGS = {"cityscapes": "semantic_segmentation"}
_DONE = "finished.json"  # what the archives hold, and the bytes of each finished shard's records
_SPARE = 1.03  # of the disk's space, for what the files have besides their images
# One record at a time is read; images are compressed already, and Zstandard would make the writing
# of JPEG files three times as slow.
_WRITER = "group_size:1,uncompressed"
_MB = 1e6


def prepare(name: str, root: pathlib.Path, manual: pathlib.Path) -> pathlib.Path:
    """Writes a data set into TFDS's data_dir, unless it is there.

    Args:
      name: One of `archives.ARCHIVES`.
      root: TFDS's data_dir.
      manual: The folder with the archives.

    Returns:
      The folder of the prepared data set.

    Raises:
      InputError: An archive is missing, cut or damaged, the disk is too small, another process is
        at work, or what is there was made from other archives.
    """
    builder = _builder(name, root)
    folder = pathlib.Path(builder.data_dir)
    if (folder / "dataset_info.json").is_file():
        return folder
    if folder.exists():
        raise InputError(f"{folder}: exists, but is not complete; delete it")
    identity = [[f.name, f.stat().st_size] for f in archives.files(name, manual)]
    unfinished = folder.with_name(folder.name + UNFINISHED)
    with archives.opened(name, manual) as opened:
        identity += [[split.name, _shard_count(split)] for split in opened.splits]
        _check_space(root, opened.splits, unfinished)
        with disk.only_one(folder.parent):
            _write(builder, opened, unfinished, _done(unfinished, identity))
            unfinished.replace(folder)
    with contextlib.suppress(OSError):
        (folder / _DONE).unlink()
    return folder


def _builder(name: str, root: pathlib.Path) -> Any:
    """TFDS's own builder, for features, version and texts; its code that prepares is not run."""
    import tensorflow_datasets as tfds

    if name not in archives.ARCHIVES:
        archives.files(name, root)  # which refuses it
    given = {"config": _CONFIGS[name]} if name in _CONFIGS else {}
    builder: Any = tfds.builder_cls(name)
    return builder(data_dir=root, file_format="array_record", **given)


def _done(unfinished: pathlib.Path, identity: list) -> dict[str, Any]:
    """What an earlier start has finished."""
    path, begun = unfinished / _DONE, {"archives": identity, "shards": {}}
    if not path.exists():
        return begun
    found = json.loads(disk.read(path))
    if found["archives"] != artefacts.plain(identity):
        raise InputError(f"{unfinished}: was begun from other archives; delete it")
    return found


def _check_space(
    root: pathlib.Path, splits: Sequence[archives.Split], unfinished: pathlib.Path
) -> None:
    there = sum(file.stat().st_size for file in unfinished.glob("*"))
    wanted = sum(split.size_bytes for split in splits) * _SPARE - there
    place = next(p for p in (root, *root.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < wanted:
        raise InputError(
            f"--root={root}: {wanted / _MB:,.0f} MB are needed, {free / _MB:,.0f} MB are free; "
            "free some space or take another disk"
        )


class _Shard(NamedTuple):
    """A file of a split: its name, and which of the split's keys it holds."""

    file: str
    split: archives.Split
    places: range


def _shard_count(split: archives.Split) -> int:
    return min(math.ceil(split.size_bytes / SHARD_BYTES) or 1, len(split.keys))


def _shards(split: archives.Split, template: Any) -> list[_Shard]:
    count = _shard_count(split)
    edges = [len(split.keys) * place // count for place in range(count + 1)]
    files = [path.name for path in template.sharded_filepaths(count)]
    ranges = [range(*pair) for pair in itertools.pairwise(edges)]
    return [_Shard(file, split, places) for file, places in zip(files, ranges, strict=True)]


def _write(
    builder: Any, opened: archives.Opened, unfinished: pathlib.Path, done: dict[str, Any]
) -> None:
    """Writes the shards that are missing, then the metadata."""
    from tensorflow_datasets.core import naming, splits

    features, sizes = builder.info.features, done["shards"]
    if opened.names:
        features["label"].names = list(opened.names)
    artefacts.write_json(unfinished / _DONE, done)
    progress = Progress(f"writing {unfinished}", sum(len(split.keys) for split in opened.splits))
    count, infos = 0, []
    for split in opened.splits:
        where: Any = unfinished  # TFDS takes it as a path of its own
        template = naming.ShardedFileTemplate(
            where, dataset_name=builder.name, split=split.name, filetype_suffix="array_record"
        )
        shards = _shards(split, template)
        for shard in shards:
            if shard.file not in sizes or not (unfinished / shard.file).is_file():
                sizes[shard.file] = _write_shard(unfinished, features, shard, progress, count)
                artefacts.write_json(unfinished / _DONE, done)
            count += len(shard.places)
        lengths, size = [len(s.places) for s in shards], sum(sizes[s.file] for s in shards)
        infos.append(splits.SplitInfo(split.name, lengths, size, template))
    builder.info.set_splits(splits.SplitDict(infos))
    builder.info.write_to_directory(unfinished)


def _write_shard(
    folder: pathlib.Path, features: Any, shard: _Shard, progress: Progress, count: int
) -> int:
    """Writes one file, which gets its name when it is complete.

    Args:
      folder: Where to.
      features: Of the data set.
      shard: The file.
      progress: Of the whole data set.
      count: How many examples the earlier files have.

    Returns:
      The bytes of its records.
    """
    from tensorflow_datasets.core import example_serializer

    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    part = folder / f".{shard.file}.part"
    size, writer = 0, records.array_record().ArrayRecordWriter(str(part), _WRITER)
    try:
        for number, place in enumerate(shard.places, count + 1):
            example = features.encode_example(shard.split.example(shard.split.keys[place]))
            # Not `features.serialize_example`: the order of its fields differs between processes.
            record = serializer.get_tf_example(example).SerializeToString(deterministic=True)
            writer.write(record)
            size += len(record)
            progress.show(number)
    finally:
        writer.close()
    with part.open("rb") as written:
        disk.sync(written)
    part.replace(folder / shard.file)
    return size
