"""Matplotlib's own style and no other: figures are the same for every user."""

import contextlib
import os

# Matplotlib cannot be imported where MPLBACKEND names a backend that is not installed, as the
# shells of notebooks do. Figures need none: they are drawn by the format that they are saved in.
_given = os.environ.pop("MPLBACKEND", None)
try:
    import matplotlib.style
finally:
    if _given is not None:
        os.environ["MPLBACKEND"] = _given
if _given:
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = _given  # others in this process may draw with it

# For functions that make and save a figure. The salt gives the same ids in every run.
plain = matplotlib.style.context(["default", {"svg.hashsalt": "qnas_jax"}])
