"""Figures depend on nothing that a user has set."""

import os
import pathlib
import subprocess
import sys

import matplotlib
import numpy as np

from qnas_jax.data import labels
from qnas_jax.report import figures

ROOT = pathlib.Path(__file__).parents[2]


def _drawn():
    image = np.arange(96, dtype=np.uint8).reshape(1, 4, 8, 3)
    curve = [(8, 0.5, 0.25, 0.5), (16, 0.75, 0.5, 0.75)]
    return figures.enough_images(curve, 32), figures.samples(
        image, {"a": image[..., 0] % 19}, labels.NAMES
    )


def test_rc_settings_change_no_figure_and_stay_as_they_are():
    expected = _drawn()
    mine = {"font.size": 30, "axes.facecolor": "red", "lines.linewidth": 9, "svg.fonttype": "none"}
    mine |= {"savefig.facecolor": "blue", "image.cmap": "hot", "savefig.dpi": 10}
    with matplotlib.rc_context(mine):
        assert _drawn() == expected
        assert matplotlib.rcParams["font.size"] == 30


def test_figures_need_no_backend_and_no_good_matplotlibrc(tmp_path):
    """A notebook's shell names a backend that this Python need not have."""
    (tmp_path / "matplotlibrc").write_text("backend: module://none\nfont.size: 30\nno line\n")
    script = (
        "from qnas_jax.report import figures; import os; print(os.environ['MPLBACKEND']);"
        "print(figures.enough_images([(8, 0.5, 0.25, 0.5), (16, 0.75, 0.5, 0.75)], 32), end='')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "module://none.backend"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "module://none.backend\n" + _drawn()[0]
