import concurrent.futures
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from qnas_jax.data.batching import Dataset
from qnas_jax.data.streets import Streets, render

SIZE = (48, 96)


def same(a, b):
    return np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])


def test_scenes_do_not_depend_on_order_or_thread():
    expected = [render(3, "val", index, *SIZE) for index in range(6)]
    backward = [render(3, "val", index, *SIZE) for index in reversed(range(6))][::-1]
    data = Streets(3, "val", *SIZE, 6)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(data.__getitem__, [*range(6), *reversed(range(6))]))
    assert all(map(same, expected, backward))
    assert all(map(same, expected, threaded[:6]))
    assert all(map(same, expected, threaded[:5:-1]))


def test_scenes_do_not_depend_on_the_process():
    script = (
        "import hashlib; from qnas_jax.data.streets import render;"
        "print(hashlib.sha256(render(0, 'train', 1, 32, 64)[0].tobytes()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    here = hashlib.sha256(render(0, "train", 1, 32, 64)[0].tobytes()).hexdigest()
    assert done.stdout.strip() == here


def test_scenes_differ_by_seed_split_and_index():
    scenes = [(0, "train", 0), (0, "train", 1), (0, "val", 0), (1, "train", 0)]
    rendered = [render(*scene, *SIZE) for scene in scenes]
    assert len({image.tobytes() for image, _ in rendered}) == 4
    assert len({train_ids.tobytes() for _, train_ids in rendered}) == 4


def test_dozens_of_scenes_contain_all_classes_and_no_others():
    shares = np.zeros(256)
    for index in range(48):
        train_ids = render(0, "train", index, *SIZE)[1]
        shares += np.bincount(train_ids.ravel(), minlength=256) / train_ids.size / 48
    assert set(np.flatnonzero(shares).tolist()) == {*range(19), 255}
    assert shares[0] > 0.15, "a street is mostly road"
    assert shares[255] < 0.1


@pytest.mark.parametrize("size", [(33, 70), (32, 32), (45, 61), (64, 33)])
def test_images_of_any_size_have_content(size):
    for index in range(3):
        image, train_ids = render(5, "train", index, *size)
        assert image.shape == (*size, 3)
        assert train_ids.shape == size
        assert image.dtype == train_ids.dtype == np.uint8
        assert image.std() > 10
        assert len(np.unique(train_ids)) > 3


def test_the_sky_is_above_the_road():
    rows = np.arange(SIZE[0])[:, None]
    for index in range(8):
        train_ids = render(0, "train", index, *SIZE)[1]
        road, sky = (np.broadcast_to(rows, SIZE)[train_ids == c] for c in (0, 10))
        assert road.size and (not sky.size or sky.mean() < road.mean())


def test_a_data_set_has_the_requested_number_of_scenes():
    data = Streets(0, "train", *SIZE, 3)
    assert isinstance(data, Dataset)
    assert (len(data), len(data.names), data.labels_per, data.content()) == (3, 19, "pixel", "")
    assert same(data[2], render(0, "train", 2, *SIZE))
    with pytest.raises(IndexError):
        data[3]
