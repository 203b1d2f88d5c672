import builtins

import numpy as np
import pytest
from PIL import Image

from in_files import refusal
from qnas_jax.data.batching import Dataset
from qnas_jax.data.digits import Digits

datasets = pytest.importorskip("sklearn.datasets")


def pixels(data):
    return [data[i][0].tobytes() for i in range(len(data))]


def test_all_digits_are_in_one_of_two_splits_and_classes_are_even_in_both():
    train, val = Digits("train", 8, 8), Digits("val", 8, 8)
    assert isinstance(train, Dataset)
    assert (len(train), len(val)) == (1437, 360)
    every = np.round(datasets.load_digits().images * 255 / 16).astype(np.uint8)
    every = np.repeat(every[..., None], 3, axis=-1)
    assert sorted(pixels(train) + pixels(val)) == sorted(image.tobytes() for image in every)
    counts = [np.bincount([int(data[i][1]) for i in range(len(data))]) for data in (train, val)]
    assert counts[1].tolist() == [36] * 10
    assert counts[0].min() >= 138 and counts[0].max() <= 147
    first = [int(train[i][1]) for i in range(40)]
    assert len(set(first)) == 10, "the first few are of all classes"


def test_labels_are_those_of_the_images():
    found = datasets.load_digits()
    classes = {
        np.round(image * 255 / 16).astype(np.uint8).tobytes(): int(target)
        for image, target in zip(found.images, found.target, strict=True)
    }
    data = Digits("val", 8, 8, count=50)
    assert len(data) == 50
    for i in range(50):
        image, label = data[i]
        assert (label.shape, label.dtype) == ((), np.int32)
        assert classes[np.ascontiguousarray(image[..., 0]).tobytes()] == int(label)


def test_digits_are_enlarged():
    small, large = Digits("train", 8, 8), Digits("train", 32, 40)
    expected = Image.fromarray(small[5][0]).resize((40, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(large[5][0], np.asarray(expected))
    assert large.content() == small.content() != Digits("val", 8, 8).content()


def test_too_many_are_refused():
    expected = "data.val_images=361: there are 360 digits"
    assert refusal(lambda: Digits("val", 8, 8, 361)) == expected


def test_without_scikit_learn_the_way_out_is_said(monkeypatch):
    found = builtins.__import__

    def without(name, *given, **named):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return found(name, *given, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    expected = "data.source='digits': needs scikit-learn; pip install 'qnas-jax[digits]'"
    assert refusal(lambda: Digits("val", 8, 8)) == expected
