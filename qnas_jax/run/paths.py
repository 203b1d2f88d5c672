"""Paths as users write them: ~ is replaced, and paths that cannot be used are refused at once."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable
from typing import Any, TypeVar

from qnas_jax.errors import InputError

Settings = TypeVar("Settings")


def expanded(name: str, text: str) -> str:
    """A path's text with ~ or ~user replaced by that home.

    A shell does this only where a word begins with ~, so neither in `--workdir=~/x` nor in a
    config.

    Args:
      name: The flag or setting that names the path, for messages.
      text: The path.

    Raises:
      InputError: The text is no path, or there is no such home.
    """
    if not text.strip() or "\0" in text:
        raise InputError(f"{name}={text!r}: must be a path")
    found = os.path.expanduser(text)
    if found == text and text.startswith("~"):
        raise InputError(f"{name}={text}: there is no such home; write the whole path")
    return found


def named(name: str, text: str) -> pathlib.Path:
    """The path that a flag or a setting names; see `expanded`."""
    return pathlib.Path(expanded(name, text))


def folder(name: str, text: str) -> pathlib.Path:
    """A folder that is there or can be made.

    Raises:
      InputError: It, or a folder on the way to it, is a file.
    """
    path = named(name, text)
    _check_folder(name, path)
    return path


def file(name: str, text: str) -> pathlib.Path:
    """A file that can be written, checked before the work whose figures it will hold.

    Raises:
      InputError: It is not a file, or cannot be written.
    """
    path = named(name, text)
    if path.exists() and not path.is_file():
        raise InputError(f"{name}={path}: is no file, must be one")
    last = _check_folder(name, path.parent)
    if not os.access(last, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise InputError(f"{name}={path}: cannot be written; take another place")
    return path


def with_homes(settings: Settings, names: Iterable[str]) -> Settings:
    """The same settings with homes filled in where these paths are set.

    Args:
      settings: A dataclass of sections, which are dataclasses.
      names: SECTION.FIELD of each path; an empty text is no path.

    Raises:
      InputError: A text is no path, or there is no such home.
    """
    for name in names:
        section, field = name.split(".")
        before: Any = getattr(settings, section)
        if text := getattr(before, field):
            after = dataclasses.replace(before, **{field: expanded(name, text)})
            settings = dataclasses.replace(settings, **{section: after})  # pyright: ignore
    return settings


def _check_folder(name: str, path: pathlib.Path) -> pathlib.Path:
    """The last folder on the way to a path that exists."""
    last = next((p for p in (path, *path.parents) if p.exists()), pathlib.Path())
    if not last.is_dir():
        raise InputError(f"{name}={path}: {last} is a file, must be a folder")
    return last
