"""Small archives in the form of the official ones of Cityscapes, CIFAR-10 and ImageNet."""

import io
import tarfile
import zipfile

import numpy as np
from PIL import Image

from qnas_jax.data import labels
from qnas_jax.data.streets import render

SCENE = (64, 128)  # height and width at which scenes are rendered, then enlarged
CITIES = {"train": ("aachen", 3), "val": ("ulm", 2), "test": ("bonn", 1)}
SYNSETS = ("n01440764", "n01739381", "n02105855")
CMYK, PNG = "n01739381_1309.JPEG", "n02105855_2933.JPEG"  # which are that in the official archive


def encoded(array, form="PNG", **how):
    out = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(out, form, **how)
    return out.getvalue()


def scene(split, index):
    """A rendered scene of Cityscapes' size, and its train ids."""
    image, train_ids = render(0, split, index, *SCENE)
    return image.repeat(16, 0).repeat(16, 1), train_ids.repeat(16, 0).repeat(16, 1)


def scenes():
    """(split of the folders, name, image, train ids) of all."""
    for split, (city, count) in CITIES.items():
        for index in range(count):
            yield split, f"{city}_{index:06d}_000019", *scene(split, index)


def cityscapes(folder):
    folder.mkdir(parents=True, exist_ok=True)
    with (
        zipfile.ZipFile(folder / "leftImg8bit_trainvaltest.zip", "w") as images,
        zipfile.ZipFile(folder / "gtFine_trainvaltest.zip", "w") as of_labels,
    ):
        images.writestr("README", "x")
        for split, name, image, train_ids in reversed(list(scenes())):
            path = f"{split}/{name.split('_')[0]}/{name}"
            images.writestr(f"leftImg8bit/{path}_leftImg8bit.png", encoded(image, compress_level=1))
            label = encoded(labels.label_ids(train_ids), compress_level=1)
            of_labels.writestr(f"gtFine/{path}_gtFine_labelIds.png", label)
            of_labels.writestr(f"gtFine/{path}_gtFine_polygons.json", "{}")


CIFAR_NAMES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())


def cifar10(folder, rows=7):
    """Returns the images uint8[n, 32, 32, 3] and classes of both splits."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, made = np.random.default_rng(0), {}
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
        _add(tar, "cifar-10-batches-bin/batches.meta.txt", "\n".join([*CIFAR_NAMES, ""]).encode())
        for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
            images = rng.integers(0, 256, (rows, 32, 32, 3), np.uint8)
            classes = rng.integers(0, 10, (rows, 1), np.uint8)
            data = np.concatenate([classes, images.transpose(0, 3, 1, 2).reshape(rows, -1)], 1)
            _add(tar, f"cifar-10-batches-bin/{name}.bin", data.tobytes())
            split = name.split("_")[0].replace("data", "train")
            made.setdefault(split, []).append((images, classes[:, 0]))
    return {
        split: [np.concatenate(parts) for parts in zip(*m, strict=True)]
        for split, m in made.items()
    }


def imagenet2012(folder):
    """Returns the bytes of all images by name, those of the training split with their class."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, train, val = np.random.default_rng(0), {}, {}
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as tar:
        for synset in SYNSETS:
            out = io.BytesIO()
            with tarfile.open(fileobj=out, mode="w") as inner:
                for index in (1309, 2, 2933):
                    name, data = f"{synset}_{index}.JPEG", _photo(rng, index % 5)
                    if name == PNG:
                        data = encoded(Image.open(io.BytesIO(data)))
                    if name == CMYK:
                        data = encoded(Image.open(io.BytesIO(data)).convert("CMYK"), "JPEG")
                    _add(inner, name, data)
                    train[name] = (synset, data)
            _add(tar, f"{synset}.tar", out.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as tar:
        for index in (2, 0, 1, 3):
            name = f"ILSVRC2012_val_{index + 1:08d}.JPEG"
            val[name] = _photo(rng, index)
            _add(tar, name, val[name])
    return train, val


def _photo(rng, index):
    small = rng.integers(0, 256, (3, 4, 3), np.uint8)
    return encoded(small.repeat(10 + index, 0).repeat(9, 1), "JPEG", quality=90)


def _add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
