"""Which features of a data set are its images and labels, chosen by their types."""

from typing import Any, NamedTuple

import numpy as np

from qnas_jax.errors import InputError


class Used(NamedTuple):
    """The features that are read.

    Attributes:
      image: Name of the images.
      label: Name of their labels.
      labels_per: "pixel" or "image", what has a label.
      names: Names of the classes; () where the data set has none.
    """

    image: str
    label: str
    labels_per: str
    names: tuple[str, ...]


def used(info: Any) -> Used:
    """Chooses images and labels.

    In this order: what the data set itself names as input and label (`supervised_keys`); one image
    with another one of a single channel, its labels; one image with a class, the one called `label`
    if there are several.

    Args:
      info: The `tfds.core.DatasetInfo` of a prepared data set.

    Raises:
      InputError: There are no images, no labels, or several that could be meant.
    """
    import tensorflow_datasets as tfds

    features = dict(info.features.items()) if hasattr(info.features, "items") else {}
    images = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
    classes = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    maps = [key for key in images if features[key].shape[-1] == 1]
    if not images:
        raise _refusal(info, features, "has no images")
    given = info.supervised_keys
    if isinstance(given, tuple) and given[0] in images and given[1] in images + classes:
        image, label = given[:2]
    elif len(images) == 2 and len(maps) == 1:
        image, label = next(key for key in images if key not in maps), maps[0]
    elif len(images) == 1 and (len(classes) == 1 or "label" in classes):
        image, label = images[0], classes[0] if len(classes) == 1 else "label"
    elif len(images) == 1:
        what = "several labels, none of them called label" if classes else "no labels"
        raise _refusal(info, features, f"has {what}")
    else:
        raise _refusal(info, features, "has several images that could be meant")
    for key in {image, label} & set(images):
        if features[key].np_dtype != np.uint8:
            dtype = np.dtype(features[key].np_dtype).name
            raise _refusal(info, features, f"has a {key} of {dtype}, must be uint8")
    per = "pixel" if label in images else "image"
    return Used(image, label, per, _names(features[label]))


def parser(features: Any) -> Any:
    """What parses records into features, images as they are encoded.

    (`tfds.decode.PartialDecoding`, which also decodes a part of the features, needs TensorFlow.)
    """
    from tensorflow_datasets.core import example_parser

    return example_parser.ExampleParserNp(features.get_serialized_info())


def _names(label: Any) -> tuple[str, ...]:
    """Names of a feature's classes; images of labels may have some, too."""
    if getattr(label, "num_classes", None) is None:
        return ()
    return tuple(label.names)


def _refusal(info: Any, features: dict[str, Any], reason: str) -> InputError:
    listed = ", ".join(f"{key}: {type(f).__name__}" for key, f in features.items())
    return InputError(
        f"data.name={info.name}: {reason}; needed are an Image and a ClassLabel, or an Image "
        f"and an Image of one channel, but its features are: {listed or type(info.features)}"
    )
