"""Preparing data sets from their archives; TFDS's own builders read the result."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image

import official_archives
from qnas_jax.data.tfds import Tfds, archives, prepare
from qnas_jax.errors import InputError

SHARD = 6_000  # bytes; several shards of these small sets


def official(name, root, split):
    source = tensorflow_datasets.builder(name, data_dir=root).as_data_source(split)
    return [source[place] for place in range(len(source))]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory):
    """TFDS's data_dir with the prepared set; the archives lie in its `manual`."""
    root = tmp_path_factory.mktemp("cityscapes")
    official_archives.cityscapes(root / "manual")
    prepare.prepare("cityscapes", root, root / "manual")
    return root


def test_cityscapes_is_what_the_archives_hold_in_order_of_the_names(cityscapes):
    found = official("cityscapes/semantic_segmentation", cityscapes, "train")
    assert [example["image_id"] for example in found] == [
        f"aachen_{index:06d}_000019".encode() for index in range(3)
    ]
    of_tfds = Tfds(str(cityscapes), "cityscapes", "train", 1024, 2048)
    for place, example in enumerate(found):
        image, train_ids = official_archives.scene("train", place)
        np.testing.assert_array_equal(example["image_left"], image)
        np.testing.assert_array_equal(of_tfds[place][0], image)
        np.testing.assert_array_equal(of_tfds[place][1], train_ids)
        label_ids = example["segmentation_label"][..., 0]
        assert (label_ids[train_ids == 0] == 7).all() and label_ids.max() <= 33
    lengths = [len(official("cityscapes", cityscapes, s)) for s in ("train", "validation", "test")]
    assert lengths == [3, 2, 1]


def test_what_is_prepared_is_left_alone(cityscapes):
    folder = cityscapes / "cityscapes" / "semantic_segmentation" / "1.0.0"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert not [path for path in before if path.name in (".lock", "finished.json")]
    assert prepare.prepare("cityscapes", cityscapes, cityscapes / "none") == folder
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


class Cifar10(tensorflow_datasets.builder_cls("cifar10"), skip_registration=True):
    """TFDS's own way of writing, given images as PNG files so that it needs no TensorFlow."""

    name = "cifar10"
    made = None
    url_infos = {}  # noqa: RUF012  # downloads nothing

    def _split_generators(self, dl_manager):
        self.info.features["label"].names = list(official_archives.CIFAR_NAMES)
        return {split: self._generate_examples(split) for split in self.made}

    def _generate_examples(self, split):
        for index, (image, label) in enumerate(zip(*self.made[split], strict=True)):
            png = official_archives.encoded(image)
            yield index, {"id": f"{split}_{index:05d}", "image": png, "label": int(label)}


def test_cifar10_is_what_tfds_writes_in_its_order(tmp_path, monkeypatch):
    made = official_archives.cifar10(tmp_path / "manual")
    monkeypatch.setattr(prepare, "SHARD_BYTES", 40_000)
    folder = prepare.prepare("cifar10", tmp_path, tmp_path / "manual")
    assert len(list(folder.glob("cifar10-train.array_record-*-of-00003"))) == 3
    Cifar10.made = made
    peer = Cifar10(data_dir=tmp_path / "peer", file_format="array_record")
    peer.download_and_prepare()
    for split, name in (("train", "train"), ("test", "val")):
        source = peer.as_data_source(split)
        found = official("cifar10", tmp_path, split)
        own = Tfds(str(tmp_path), "cifar10", name, 32, 32)
        assert len(found) == len(source) == len(own) == len(made[split][0])
        for place, (example, expected) in enumerate(zip(found, source, strict=True)):
            assert example["id"] == expected["id"]
            index = int(example["id"].decode().split("_")[1])
            np.testing.assert_array_equal(example["image"], made[split][0][index])
            assert example["label"] == expected["label"] == made[split][1][index]
            np.testing.assert_array_equal(own[place][0], example["image"])
            assert own[place][1] == example["label"]
        assert own.names == official_archives.CIFAR_NAMES


def test_imagenet_has_its_classes_and_its_odd_images_as_rgb(tmp_path, monkeypatch):
    train, val = official_archives.imagenet2012(tmp_path / "manual")
    monkeypatch.setattr(prepare, "SHARD_BYTES", SHARD)
    prepare.prepare("imagenet2012", tmp_path, tmp_path / "manual")
    builder = tensorflow_datasets.builder("imagenet2012", data_dir=tmp_path)
    names = builder.info.features["label"].names
    assert builder.info.splits["train"].num_shards > 1
    order = []
    for example in builder.as_data_source("train"):
        name = example["file_name"].decode()
        order.append(name)
        synset, data = train[name]
        assert names[example["label"]] == synset
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert example["image"].shape == pixels.shape
        if name in (official_archives.CMYK, official_archives.PNG):  # encoded once more
            assert abs(example["image"].astype(int) - pixels).mean() < 4  # 1.9 and 3.0
        else:
            np.testing.assert_array_equal(example["image"], pixels)
    assert sorted(order) == sorted(train) and order != sorted(train)
    labels = tensorflow_datasets.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    expected = labels.read_text().split()
    found = {e["file_name"].decode(): e["label"] for e in builder.as_data_source("validation")}
    assert sorted(found) == sorted(val)
    for name, label in found.items():
        assert names[label] == expected[int(name[15:23]) - 1]


def test_stopped_between_and_within_shards_it_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    official_archives.cifar10(tmp_path / "manual")
    monkeypatch.setattr(prepare, "SHARD_BYTES", 40_000)
    whole = files(prepare.prepare("cifar10", tmp_path / "whole", tmp_path / "manual"))
    serve, calls = archives._Rows.__call__, []

    def failing(self, key):
        calls.append(key)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return serve(self, key)

    monkeypatch.setattr(archives._Rows, "__call__", failing)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare("cifar10", tmp_path / "cut", tmp_path / "manual")
    kept = [p.name for p in (tmp_path / "cut/cifar10/3.0.2.unfinished").glob("cifar10-*")]
    assert kept == ["cifar10-train.array_record-00000-of-00003"]
    with pytest.raises(
        InputError, match=r"not prepared in .* completely; resume with: qnas prepare"
    ):
        Tfds(str(tmp_path / "cut"), "cifar10", "train", 32, 32)
    calls[:] = range(20)  # no failure any more
    folder = prepare.prepare("cifar10", tmp_path / "cut", tmp_path / "manual")
    assert len(calls) - 20 == 42 - 11, "the first shard's 11 images are not made again"
    assert files(folder) == whole


KILLED = """
import sys, os, signal
from qnas_jax.data.tfds import archives, prepare
import pathlib
prepare.SHARD_BYTES = 40_000
write, done = prepare._write_shard, []
def dying(*arguments):
    if len(done) == 2: os.kill(os.getpid(), signal.SIGKILL)
    done.append(write(*arguments))
    return done[-1]
prepare._write_shard = dying
root = pathlib.Path(sys.argv[1])
prepare.prepare("cifar10", root, pathlib.Path(sys.argv[2]))
"""


def test_killed_it_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    official_archives.cifar10(tmp_path / "manual")
    command = [sys.executable, "-c", KILLED, tmp_path / "cut", tmp_path / "manual"]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    monkeypatch.setattr(prepare, "SHARD_BYTES", 40_000)
    whole = prepare.prepare("cifar10", tmp_path / "whole", tmp_path / "manual")
    assert files(prepare.prepare("cifar10", tmp_path / "cut", tmp_path / "manual")) == files(whole)


def refused(name, root, manual):
    with pytest.raises(InputError) as error:
        prepare.prepare(name, root, manual)
    assert "\n" not in str(error.value)
    assert not list(root.glob(f"{name}/**/*.array_record*")), "nothing was written"
    return str(error.value)


MAKE = {name: getattr(official_archives, name) for name in archives.ARCHIVES}


@pytest.mark.parametrize(
    ("name", "archive"),
    [(name, archive) for name, found in archives.ARCHIVES.items() for archive in found],
)
def test_archives_that_are_missing_or_cut_are_named(tmp_path, name, archive, cityscapes):
    if name == "cityscapes":
        shutil.copytree(cityscapes / "manual", tmp_path / "manual")
    else:
        MAKE[name](tmp_path / "manual")
    path = tmp_path / "manual" / archive
    content = path.read_bytes()
    for size in (0, 700, len(content) // 2 // 512 * 512, len(content) - 10_240 - 30):
        path.write_bytes(content[: max(size, 0)])
        message = refused(name, tmp_path, tmp_path / "manual")
        assert message.startswith(f"{path}: was cut or is damaged (")
        assert message.endswith("; download it again")
    path.unlink()
    found = refused(name, tmp_path, tmp_path / "manual")
    assert found.startswith(f"{tmp_path}/manual: holds no {archive}; put what is missing there, ")


@pytest.mark.parametrize("archive", archives.ARCHIVES["imagenet2012"])
def test_an_archive_that_was_cut_between_two_files_is_noticed(tmp_path, archive):
    official_archives.imagenet2012(tmp_path / "manual")
    path = tmp_path / "manual" / archive
    with tarfile.open(path) as tar:
        second = tar.getmembers()[1].offset
    path.write_bytes(path.read_bytes()[:second])
    found = refused("imagenet2012", tmp_path, tmp_path / "manual")
    assert found.startswith(f"{path}: was cut or is damaged (its end is missing)")


def test_other_content_is_refused_before_anything_is_written(tmp_path, cityscapes):
    manual = tmp_path / "manual"
    assert "--name='mnist': must be one of cityscapes, cifar10, imagenet2012; prepare" in refused(
        "mnist", tmp_path, manual
    )
    shutil.copytree(cityscapes / "manual", manual)
    images, labels = archives.ARCHIVES["cityscapes"]
    shutil.copy(manual / images, manual / labels)
    assert re.search(
        r"gtFine_trainvaltest.zip: holds no gtFine/train/aachen/.*_labelIds.png, the "
        r"labels of leftImg8bit/train/aachen/",
        refused("cityscapes", tmp_path, manual),
    )
    shutil.copy(cityscapes / "manual" / labels, manual / images)
    assert f"{manual / images}: holds no leftImg8bit/train/CITY/" in refused(
        "cityscapes", tmp_path, manual
    )
    official_archives.imagenet2012(manual)
    train, val = (manual / name for name in archives.ARCHIVES["imagenet2012"])
    shutil.copy(train, val)
    found = refused("imagenet2012", tmp_path, manual)
    assert found == f"{val}: holds n01440764.tar, which is no image of this split"
    official_archives.imagenet2012(manual)
    shutil.copy(val, train)
    found = refused("imagenet2012", tmp_path, manual)
    assert found == f"{train}: holds ILSVRC2012_val_00000003.JPEG, must hold CLASS.tar alone"


def test_a_full_disk_is_noticed_first(tmp_path, monkeypatch):
    official_archives.cifar10(tmp_path / "manual")
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    found = refused("cifar10", tmp_path / "root", tmp_path / "manual")
    assert found.startswith(f"--root={tmp_path}/root: 0 MB are needed, 0 MB are free; free some")
    assert not (tmp_path / "root").exists()


def test_other_archives_do_not_resume_what_was_begun(tmp_path, monkeypatch):
    official_archives.cifar10(tmp_path / "manual")
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_write_shard", lambda *_: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare("cifar10", tmp_path, tmp_path / "manual")
    official_archives.cifar10(tmp_path / "manual", rows=8)
    found = refused("cifar10", tmp_path, tmp_path / "manual")
    assert found == f"{tmp_path}/cifar10/3.0.2.unfinished: was begun from other archives; delete it"


WATCHED = """
import sys
from qnas_jax.__main__ import main
try:
    main()
finally:
    print("tensorflow" in sys.modules)
"""


def test_the_program_prepares_with_progress_and_imports_no_tensorflow(tmp_path):
    official_archives.cifar10(tmp_path / "downloads" / "manual")
    command = [sys.executable, "-W", "error", "-c", WATCHED]
    command += ["prepare", "--name=cifar10", f"--root={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/cifar10/3.0.2\nFalse\n"
    assert re.search(r"writing .*cifar10/3.0.2.unfinished 42/42 \(100%\)", done.stderr)


def test_the_checksum_at_the_end_of_an_archive_is_looked_at(tmp_path):
    official_archives.cifar10(tmp_path / "manual")
    (path,) = (tmp_path / "manual" / name for name in archives.ARCHIVES["cifar10"])
    content = path.read_bytes()
    for damaged in (content[:-6], content[:-8] + bytes(4) + content[-4:]):
        path.write_bytes(damaged)
        found = refused("cifar10", tmp_path, tmp_path / "manual")
        assert found.startswith(f"{path}: was cut or is damaged (")
