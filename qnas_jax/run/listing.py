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

    Left out is what is hidden (macOS leaves `._NAME` next to every file `NAME`), what else
    systems leave, and all that lies in such a folder. The folder itself may have any name.

    Args:
      folder: Need not exist.
      pattern: As of `pathlib.Path.glob`; `**/*` is all there is.
    """
    found = folder.glob(pattern)
    return sorted(p for p in found if not any(map(_is_left, p.relative_to(folder).parts)))


def _is_left(name: str) -> bool:
    return name.startswith(".") or name.lower() in _OF_SYSTEMS
