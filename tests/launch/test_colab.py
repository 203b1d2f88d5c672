"""launch/colab.ipynb runs, and shows what it computed.

After a change to it: jupyter execute --inplace launch/colab.ipynb
"""

import pathlib
import re

import nbclient
import nbformat
import pytest

import qnas_jax as qn

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = ROOT / "launch" / "colab.ipynb"
SMALL = """
HEIGHT, WIDTH = 32, 64
IMAGES, VAL_IMAGES, BATCH = 8, 4, 4
TEACHER_STEPS, SUPERNET_STEPS, RETRAIN_STEPS = 3, 2, 2
KERNELS, EXPANSIONS = (3,), (3, 6)
BITS = ((8, 8), (4, 4))
BUDGET = 24_000
"""


def code_cells():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text(cells):
    """All that cells print."""
    shown = (output for cell in cells for output in cell.outputs)
    return "".join(output.get("text", "") for output in shown)


def executed(folder, parameters=None):
    """The cells after a run in a folder; with other parameters if they are given."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if parameters and "parameters" in cell.metadata.get("tags", []):
            assert names(cell.source) == names(parameters)
            cell.source = parameters
    where = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=900, resources=where).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def names(parameters):
    return re.findall(r"\b[A-Z_]{2,}\b", re.sub(r"#.*", "", parameters))


def assert_ran(cells, folder):
    found = re.search(r"lowest NSR within 24 kB: (\S+)", text(cells))
    assert found
    assert len(qn.parse_subnet(found[1])) == 3
    (same,) = re.findall(r"([\d.]+) % of its pixels", text(cells))
    assert float(same) > 98
    assert (folder / "subnet.onnx").stat().st_size > 10_000


@pytest.mark.slow
def test_it_runs_with_few_steps(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiles in half of the time
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert_ran(executed(tmp_path, SMALL), tmp_path)


@pytest.mark.slow
def test_it_runs_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert_ran(executed(tmp_path), tmp_path)


def test_its_outputs_are_those_of_one_run_without_warnings():
    cells = code_cells()
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3


def test_it_uses_the_library_alone():
    source = "\n".join(cell.source for cell in code_cells())
    assert not re.findall(r"from qnas_jax|import qnas_jax\.|^ *!|%%", source, re.MULTILINE)
