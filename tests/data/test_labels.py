import numpy as np
import pytest

from qnas_jax.data import labels

# From cityscapesScripts, helpers/labels.py: the train ids of label ids 0..33.
TRAIN_IDS = [255] * 7 + [0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255]
TRAIN_IDS += [6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 255, 255, 16, 17, 18]


def test_train_ids_equal_those_of_cityscapes_scripts():
    ids = np.arange(34, dtype=np.uint8)
    assert labels.train_ids(ids).tolist() == TRAIN_IDS
    assert labels.train_ids(ids.reshape(2, 17)).tolist() == [TRAIN_IDS[:17], TRAIN_IDS[17:]]
    assert labels.train_ids(ids).dtype == np.uint8


def test_train_ids_survive_a_round_trip_through_label_ids():
    ids = np.array([*range(19), 255], np.uint8)
    np.testing.assert_array_equal(labels.train_ids(labels.label_ids(ids)), ids)
    assert labels.label_ids(ids)[-1] == labels.STATIC == 4


@pytest.mark.parametrize("wrong", [34, 255])
def test_an_unknown_label_id_is_refused(wrong):
    with pytest.raises(ValueError, match=f"^label id {wrong}: label ids lie in 0..33$"):
        labels.train_ids(np.array([[7, wrong, 26]], np.uint8))


def test_train_ids_in_place_of_label_ids_are_recognised():
    with pytest.raises(ValueError, match=r"in 0..33; all values of this file are train ids"):
        labels.train_ids(np.array([[7, 255, 18]], np.uint8))


def test_train_ids_are_checked():
    ids = np.array([[*range(19), 255]], np.uint8)
    np.testing.assert_array_equal(labels.checked_train_ids(ids), ids)
    for wrong in (19, 33, 254):
        with pytest.raises(
            ValueError, match=f"^train id {wrong}: train ids lie in 0..18, or are 2"
        ):
            labels.checked_train_ids(np.array([[7, wrong]], np.uint8))


def test_an_empty_array_is_allowed():
    assert labels.train_ids(np.zeros((0, 4), np.uint8)).shape == (0, 4)


def test_names_and_colours_are_those_of_cityscapes():
    assert len(labels.NAMES) == len(set(labels.NAMES)) == 19
    by_name = dict(zip(labels.NAMES, labels.PALETTE[:19].tolist(), strict=True))
    assert by_name["road"] == [128, 64, 128]
    assert by_name["sky"] == [70, 130, 180]
    assert by_name["car"] == [0, 0, 142]
    assert by_name["bicycle"] == [119, 11, 32]
    assert len(set(map(tuple, by_name.values()))) == 19
    assert labels.PALETTE[255].tolist() == [0, 0, 0]
