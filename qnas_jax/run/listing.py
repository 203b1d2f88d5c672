"""What folders hold, without the files that operating systems and file servers leave in them."""

import pathlib

# By their names in lower case; hidden files and folders are left out as well.
_OF_SYSTEMS = {
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "system volume information",
    "@eadir",
    "#recycle",
    "#snapshot",
    "lost+found",
    "__macosx",
}


def listed(folder: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    """Files and folders below a folder that match a pattern, in order of their names.

    Leaves out hidden files (macOS leaves `._NAME` next to every file `NAME`), other files that
    systems leave, and everything in such folders. The folder itself may have any name.

    Args:
      folder: Need not exist.
      pattern: As of `pathlib.Path.glob`; `**/*` is everything.
    """
    found = folder.glob(pattern)
    return sorted(p for p in found if not any(map(_is_left, p.relative_to(folder).parts)))


def _is_left(name: str) -> bool:
    return name.startswith(".") or name.lower() in _OF_SYSTEMS
