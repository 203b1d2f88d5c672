"""From a data set to training batches: a pure function of the step, made in advance by threads.

A batch depends on the seed and the step alone, so a resumed run sees the batches that it
would have seen.
"""

import collections
import concurrent.futures
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from PIL import Image

from qnas_jax.metrics import IGNORE

Item = TypeVar("Item")


@runtime_checkable  # for the checks of annotated types in the tests
class Pairs(Protocol):
    """A sequence of images with labels, all of one size; a list of pairs is one.

    An image is uint8[h, w, 3]. Its label is the train ids of its pixels, uint8[h, w], where
    255 (`IGNORE`) does not count; or the class of the whole image, an int32 array of shape [].
    It is read by several threads at once.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...


@runtime_checkable
class Dataset(Pairs, Protocol):
    """What a run asks of a split of any source, besides its images.

    Attributes:
      labels_per: "pixel" or "image", what has a label.
    """

    labels_per: str

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        ...

    def content(self) -> str:
        """A short hash of what the files hold; "" if the settings say it all."""
        ...

    def check(self) -> None:
        """Looks at the files before work that takes hours.

        Raises:
          InputError: One of them cannot be used; the message names it.
        """
        ...


class Resized:
    """A data set at another size: images bilinear, labels of pixels those of the nearest."""

    def __init__(self, data: Dataset, height: int, width: int):
        """Resizes each image when it is read."""
        self._data, self._size = data, (width, height)
        self.names, self.labels_per = data.names, data.labels_per
        self.content, self.check = data.content, data.check

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8[height, width, 3] and its label: uint8[height, width] or int32[]."""
        image, label = self._data[index]
        image = _resized(image, self._size, Image.Resampling.BILINEAR)
        if label.ndim:
            label = _resized(label, self._size, Image.Resampling.NEAREST)
        return image, label


def _resized(array, size, resampling):
    return np.asarray(Image.fromarray(array).resize(size, resampling))


class Part:
    """Some of the images of a data set, in order."""

    def __init__(self, data: Dataset, places: Sequence[int]):
        """The images at these places."""
        self.data, self._places = data, places
        self.names, self.labels_per = data.names, data.labels_per
        self.content, self.check = data.content, data.check

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The image and its label."""
        return self.data[self._places[index]]


class Cached:
    """A data set whose images are kept as they were read, until the memory for them is full.

    The first images that are asked for stay. (As each epoch has another order, it makes no
    difference which, and none is read again to make room.)
    """

    def __init__(self, data: Dataset, megabytes: int):
        """Keeps images and labels of at most so many megabytes (1e6 bytes)."""
        self._data, self._left = data, megabytes * 1_000_000
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._lock = threading.Lock()
        self.names, self.labels_per = data.names, data.labels_per
        self.content, self.check = data.content, data.check

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The image and its label; they cannot be written to."""
        pair = self._kept.get(index)
        if pair is None:
            pair = self._data[index]  # several threads read at once; one may read in vain
            self._keep(index, pair)
        return pair

    def _keep(self, index, pair):
        size = sum(array.nbytes for array in pair)
        with self._lock:
            if index in self._kept or size > self._left:
                return
            self._left -= size
            for array in pair:
                array.flags.writeable = False
            self._kept[index] = pair


class Batch(NamedTuple):
    """Images as bytes, and the labels of their pixels or of themselves."""

    images: np.ndarray  # uint8[n, h, w, 3]
    labels: np.ndarray  # uint8[n, h, w] or int32[n]


class Augmentation(NamedTuple):
    """How training images are augmented."""

    crop: tuple[int, int]  # height, width
    scale: tuple[float, float]  # smallest and largest random scale
    flip: bool = True  # half of the images, left to right


def sample_indices(seed: int, step: int, batch: int, count: int) -> np.ndarray:
    """The images of a step; every epoch is a new permutation."""
    places = step * batch + np.arange(batch)
    epochs = {
        e: np.random.default_rng((seed, e)).permutation(count)
        for e in set((places // count).tolist())
    }
    return np.array([epochs[p // count][p % count] for p in places.tolist()])


def augment(
    image: np.ndarray, label: np.ndarray, how: Augmentation, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A random crop of the image at a random scale, flipped at random.

    Outside of the image it is grey, and ignored in the labels of pixels. A label of the whole
    image stays as it is.
    """
    height, width = how.crop
    scale = rng.uniform(*how.scale)
    window = (height / scale, width / scale)  # of the source, in its pixels
    top, left = (
        rng.uniform(min(0, size - part), max(0, size - part))
        for size, part in zip(image.shape[:2], window, strict=True)
    )
    box = (left, top, left + window[1], top + window[0])
    image = _cut(image, box, (width, height), Image.Resampling.BILINEAR, 128)
    mirrored = how.flip and rng.random() < 0.5
    image = image[:, ::-1] if mirrored else image
    if label.ndim:
        label = _cut(label, box, (width, height), Image.Resampling.NEAREST, IGNORE)
        label = label[:, ::-1] if mirrored else label
    return image, label


def _cut(array, box, size, resampling, fill):
    """The box of the array at a new (width, height); `fill` where the box leaves it."""
    bounds = (array.shape[1], array.shape[0]) * 2
    left, top, right, bottom = inner = [
        min(max(edge, 0), bound) for edge, bound in zip(box, bounds, strict=True)
    ]
    rate = [size[i] / (box[i + 2] - box[i]) for i in (0, 1)]
    # Where the part that lies inside goes, in pixels of the result.
    place = [round((inner[i] - box[i % 2]) * rate[i % 2]) for i in range(4)]
    part_size = (max(place[2] - place[0], 1), max(place[3] - place[1], 1))
    part = Image.fromarray(array).resize(part_size, resampling, box=(left, top, right, bottom))
    if part_size == tuple(size):
        return np.asarray(part)
    result = np.full((size[1], size[0], *array.shape[2:]), fill, array.dtype)
    result[place[1] :, place[0] :][: part_size[1], : part_size[0]] = np.asarray(part)
    return result


def training_batch(
    data: Pairs,
    seed: int,
    step: int,
    batch: int,
    how: Augmentation,
    share: Sequence[int] | None = None,
) -> Batch:
    """The batch of a step, or the places of it that are in a share."""
    images, labels = [], []
    indices = sample_indices(seed, step, batch, len(data))
    for place in range(batch) if share is None else share:
        rng = np.random.default_rng((seed, step, place))
        image, label = augment(*data[int(indices[place])], how, rng)
        images.append(image)
        labels.append(label)
    return Batch(np.stack(images), np.stack(labels))


def stacked(data: Pairs, indices: Iterable[int]) -> Batch:
    """The images of some indices, unchanged."""
    pairs = [data[int(i)] for i in indices]
    return Batch(np.stack([i for i, _ in pairs]), np.stack([label for _, label in pairs]))


def central_crops(data: Pairs, indices, crop: tuple[int, int]) -> np.ndarray:
    """Returns the centres of some images, uint8[n, height, width, 3].

    Args:
      data: The images.
      indices: Which of them.
      crop: Height and width of the centres; an image that is smaller stays as it is.
    """
    images = stacked(data, indices).images
    (height, width), (crop_height, crop_width) = images.shape[1:3], crop
    top, left = max(height - crop_height, 0) // 2, max(width - crop_width, 0) // 2
    return images[:, top : top + crop_height, left : left + crop_width]


def prefetch(
    make: Callable[[int], Item], start: int, stop: int, threads: int = 2
) -> Iterator[Item]:
    """`make(i)` for every i in [start, stop), in order, made by threads in advance."""
    pending: collections.deque[concurrent.futures.Future[Item]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        try:
            for number in range(start, stop):
                pending.append(pool.submit(make, number))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # the reader may stop early
            for future in pending:
                future.cancel()


class Timed(Iterator[Item]):
    """Hands items on, and measures how long the reader has to wait for them.

    The share of time spent waiting is an upper bound of the time that training loses for want of
    images: the device may still be busy with an earlier step. The time that making images takes
    from the device, if both are the same CPU, is not included.
    """

    def __init__(self, items: Iterator[Item]):
        """The clock begins to run here."""
        self._items, self._begin, self._waited = items, time.monotonic(), 0.0

    def __next__(self) -> Item:
        begin = time.monotonic()
        try:
            return next(self._items)
        finally:
            self._waited += time.monotonic() - begin

    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begin

    def share(self) -> float:
        """The share of that time that the reader waited, in [0, 1]."""
        return self._waited / self.elapsed()
