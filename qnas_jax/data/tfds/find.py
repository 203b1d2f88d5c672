"""Finds what is prepared in TFDS's data_dir, and says what to do about what is not.

    ROOT/NAME[/CONFIG]/VERSION/dataset_info.json

No code of the data set is run, so sets without code are found, and nothing is downloaded.
"""

import pathlib
import re
from typing import Any

from qnas_jax.data.tfds.archives import ARCHIVES
from qnas_jax.errors import InputError
from qnas_jax.run.listing import listed

MANUAL = "downloads/manual"  # below the data_dir: where TFDS expects archives
UNFINISHED = ".unfinished"  # what `qnas prepare` adds to the version until all is written
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_NAME = re.compile(r"(\w+)(?:/([\w.\-]+))?(?::(\d+\.\d+\.\d+))?")
_INFO = "dataset_info.json"


def prepared(root: str, name: str) -> pathlib.Path:
    """The folder of a prepared data set; of several versions the latest.

    Args:
      root: TFDS's data_dir.
      name: NAME, NAME/CONFIG, or either with :VERSION.

    Raises:
      InputError: There is none, or there are several configs; the message says the way out.
    """
    parts = _NAME.fullmatch(name)
    if not parts:
        raise InputError(f"data.name={name!r}: must be NAME, NAME/CONFIG or NAME/CONFIG:VERSION")
    base, config, version = parts.groups()
    at = pathlib.Path(root) / base
    pattern = f"{config or '*'}/*/{_INFO}"
    infos = listed(at, pattern) + ([] if config else listed(at, f"*/{_INFO}"))
    folders = [info.parent for info in infos if _VERSION.fullmatch(info.parent.name)]
    configs = sorted({str(folder.parent.relative_to(root)) for folder in folders})
    folders = [folder for folder in folders if version in (None, folder.name)]
    if not folders:
        raise _missing(pathlib.Path(root), name, base)
    if len(configs) > 1:
        raise InputError(f"data.name={name}: {root} holds several; name one of {configs}")
    return max(folders, key=lambda folder: [int(part) for part in folder.name.split(".")])


def split_of(info: Any, split: str) -> str:
    """The name that a data set has for a split.

    Args:
      info: The `tfds.core.DatasetInfo` of a prepared data set.
      split: "train" or "val", which is validation, or where there is none, test.

    Raises:
      InputError: The data set has no such split.
    """
    wanted = ("val", "validation", "test") if split == "val" else (split,)
    for name in wanted:
        if name in info.splits and info.splits[name].num_examples:
            return name
    needed = "validation or test" if split == "val" else split
    found = ", ".join(sorted(info.splits)) or "none"
    raise InputError(f"data.name={info.name}: has no split {needed}; its splits are: {found}")


def _missing(root: pathlib.Path, name: str, base: str) -> InputError:
    """What is said of a data set that is not prepared."""
    start = f"data.name={name}: not prepared in data.root={root}"
    if not root.is_dir():
        return InputError(f"data.root={root}: no such folder; it must be TFDS's data_dir")
    command = f"qnas prepare --name={base} --root={root}"
    if listed(root / base, f"**/*{UNFINISHED}"):
        return InputError(f"{start} completely; resume with: {command}")
    if base not in ARCHIVES:
        infos = listed(root, f"*/*/{_INFO}") + listed(root, f"*/*/*/{_INFO}")
        others = sorted({info.relative_to(root).parts[0] for info in infos})
        held = f", which holds {', '.join(others)}" if others else ""
        return InputError(f"{start}{held}; prepare it: tfds build {name} --data_dir={root}")
    manual = root / MANUAL
    lacking = [archive for archive in ARCHIVES[base] if not (manual / archive).is_file()]
    if lacking:
        return InputError(f"{start}; put {' and '.join(lacking)} into {manual}, then: {command}")
    return InputError(f"{start}, but its archives are there; prepare it: {command}")
