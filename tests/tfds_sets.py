"""Writes data sets in the formats of TFDS, with its own metadata, for the tests."""

import pathlib
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer, file_adapters, naming

from official_archives import encoded
from qnas_jax.data.tfds import Tfds
from qnas_jax.errors import InputError

PIXELS = {
    "image": tfds.features.Image(shape=(None, None, 3)),
    "mask": tfds.features.Image(shape=(None, None, 1)),
}
CLASSES = {
    "image": tfds.features.Image(shape=(None, None, 3)),
    "label": tfds.features.ClassLabel(names=["cat", "dog", "emu"]),
}
SHARDS = (3, 2)  # records of each file


def _frames(path, records):
    """TFRECORD, by hand; the checksums are not looked at."""
    with open(path, "wb") as file:
        for record in records:
            file.write(struct.pack("<Q4x", len(record)) + record + bytes(4))


def write(root, features, splits, name="mine", form="tfrecord", version="1.0.0", **about):
    """Writes a data set without code: `splits` are lists of examples."""
    folder = pathlib.Path(root) / name / version
    folder.mkdir(parents=True)
    features, infos = tfds.features.FeaturesDict(features), []
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    base = name.split("/")[0]
    for split, examples in splits.items():
        template = naming.ShardedFileTemplate(
            folder, dataset_name=base, split=split, filetype_suffix=form
        )
        counts = SHARDS if len(examples) == sum(SHARDS) else (len(examples),)
        at = 0
        for path, count in zip(template.sharded_filepaths(len(counts)), counts, strict=True):
            records = [
                serializer.serialize_example(features.encode_example(example))
                for example in examples[at : at + count]
            ]
            at += count
            if form == "tfrecord":
                _frames(path, records)
            else:
                adapter = file_adapters.ADAPTER_FOR_FORMAT[file_adapters.FileFormat(form)]
                adapter.write_examples(path, list(enumerate(records)))
        infos.append(tfds.core.SplitInfo(split, list(counts), 1, template))
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=infos,
        version=version,
        check_data=False,
        **about,
    )
    return folder


def random(count, height=6, width=10, seed=0):
    rng = np.random.default_rng(seed)
    shape = (count, height, width)
    return rng.integers(0, 256, (*shape, 3), np.uint8), rng.integers(0, 4, shape, np.uint8)


def pixels(count=5, **how):
    return [
        {"image": encoded(i), "mask": encoded(m)}
        for i, m in zip(*random(count, **how), strict=True)
    ]


def classes(count=5, **how):
    images = random(count, **how)[0]
    return [{"image": encoded(image), "label": n % 3} for n, image in enumerate(images)]


def opened(root, split="train", name="mine", height=6, width=10, count=0):
    return Tfds(str(root), name, split, height, width, count)


def refusal(make):
    with pytest.raises(InputError) as error:
        make()
    assert "\n" not in str(error.value)
    return str(error.value)
