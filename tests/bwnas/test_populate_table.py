"""How the arithmetic of a table is chosen: once, named, and with a reason."""

import dataclasses

import jax
import pytest

import chip
from qnas_jax.bwnas import populate_table
from qnas_jax.bwnas.config import Lut
from qnas_jax.errors import InputError
from qnas_jax.kernels import int8
from qnas_jax.run import artefacts, parallel
from qnas_jax.run.stage import Stage, begun_with

NO_CPP = int8.Found("XLA", False, "there is no C++ compiler (c++)")
KERNELS = {
    "C++": int8.Found("C++", True, ""),
    "accelerator": int8.Found("XLA", False, ""),
    "no C++": NO_CPP,
}


@pytest.fixture
def found(request, monkeypatch):
    asked = []
    answer = KERNELS[getattr(request, "param", "no C++")]

    def find_kernel(may_compile):
        asked.append(may_compile)
        return answer

    monkeypatch.setattr(int8, "find_kernel", find_kernel)
    return asked


@pytest.mark.parametrize(
    ("found", "expected", "lines"),
    [
        ("C++", "int8", []),
        ("accelerator", "float32", []),
        (
            "no C++",
            "float32",
            ["lut: float32, several times slower than int8 in C++: there is no C++ compiler (c++)"],
        ),
    ],
    indirect=["found"],
)
@pytest.mark.parametrize("may_compile", [True, False])
def test_auto_is_what_is_faster_here(found, expected, lines, may_compile, caplog):
    assert populate_table.resolve_compute(Lut(), may_compile, None) == expected
    assert found == [may_compile]
    assert caplog.messages == lines


@pytest.mark.parametrize("compute", ["int8", "float32"])
def test_a_named_arithmetic_is_taken_as_it_is(found, compute):
    begun = {"int8": "float32", "float32": "int8"}[compute]
    assert populate_table.resolve_compute(Lut(compute=compute), True, begun) == compute
    assert not found


@pytest.mark.parametrize("compute", ["int8", "float32"])
def test_auto_keeps_the_arithmetic_of_a_table_that_was_begun(found, tmp_path, caplog, compute):
    """On another machine it may be the slower one; a table never mixes two."""
    Stage(tmp_path / "lut", {"images": 3, "compute": compute}).begin()
    begun = begun_with(tmp_path / "lut", "compute")
    assert populate_table.resolve_compute(Lut(), True, begun) == compute
    assert not found and not caplog.messages


def test_a_folder_that_holds_nothing_was_begun_with_nothing(tmp_path):
    assert begun_with(tmp_path / "lut", "compute") is None
    Stage(tmp_path / "lut", {"images": 3}).begin()
    assert begun_with(tmp_path / "lut", "compute") is None


@pytest.mark.parametrize("begun", [None, "float32", "int8"])
def test_ranges_for_each_channel_are_float32(found, caplog, begun):
    caplog.set_level("INFO")
    assert populate_table.resolve_compute(Lut(a_ranges_per="channel"), True, begun) == "float32"
    line = "lut: float32, as lut.a_ranges_per=channel; int8 has one range for all"
    assert caplog.messages == ([line] if begun is None else [])
    assert not found


@pytest.mark.parametrize(
    ("found", "kernel", "line"),
    [
        ("C++", "C++", "lut: int8 in C++"),
        ("accelerator", "XLA", "lut: int8 in XLA"),
        ("no C++", "XLA", f"lut: int8 in XLA, several times slower than in C++: {NO_CPP.reason}"),
    ],
    indirect=["found"],
)
def test_the_kernel_of_int8_is_named_in_one_line(found, kernel, line, caplog):
    caplog.set_level("INFO")
    assert populate_table._kernel(False) == kernel
    assert caplog.messages == [line] and found == [False]


def _ahead(laid_out, **lut):
    config = laid_out.config
    config.lut = dataclasses.replace(config.lut, **lut)
    where = laid_out.workdir, laid_out.problem, laid_out.deployed
    how = config.space, config.lut, config.kernels, config.train.crop
    populate_table.compile_ahead(*where, *how, {})


@pytest.mark.parametrize(
    ("found", "lut", "kernel"),
    [
        ("C++", {}, "C++"),
        ("C++", {"compute": "float32"}, None),
        ("C++", {"a_ranges_per": "channel"}, None),
        ("no C++", {}, None),
        ("no C++", {"compute": "int8"}, "XLA"),
        ("accelerator", {}, None),
    ],
    indirect=["found"],
)
def test_the_programs_of_the_table_that_follows_are_compiled(
    found, lut, kernel, tmp_path, monkeypatch
):
    jobs = []
    monkeypatch.setattr(populate_table.populate, "compile_ahead", jobs.append)
    laid_out = chip.prepared(chip.smoke(), tmp_path)
    _ahead(laid_out, **lut)
    ((job,), how) = jobs, laid_out.config.lut
    assert job.method.kernel == kernel
    in_full = populate_table.resolve_compute(how, True, None)
    assert job.method.compute == in_full


@pytest.mark.parametrize("why", ["begun", "devices", "per_tensor"])
def test_nothing_is_compiled_that_the_table_would_not_run(found, tmp_path, monkeypatch, why):
    monkeypatch.setattr(populate_table.populate, "compile_ahead", lambda _: pytest.fail(why))
    laid_out = chip.prepared(chip.smoke(), tmp_path)
    if why == "begun":
        (tmp_path / "lut").mkdir()
    elif why == "devices":
        team = parallel.Team(1, 0, (*jax.devices(), *jax.devices()), True)
        monkeypatch.setattr(parallel, "team", lambda: team)
    else:
        target = dataclasses.replace(laid_out.deployed.target, per_channel=False)
        laid_out = laid_out._replace(deployed=laid_out.deployed._replace(target=target))
    _ahead(laid_out)


def test_a_finished_table_of_a_version_with_fewer_settings_is_kept(tmp_path):
    laid_out = chip.prepared(chip.smoke(), tmp_path)
    config, distilled = laid_out.config, Stage(tmp_path / "supernet", {})
    config.lut.compute = "float32"
    chip.populated(laid_out)
    made_from = populate_table._made_from(config.space, config.lut, distilled, "float32")
    del made_from["time_budget_s"]
    mark = {"hash": "older", "made_from": made_from, "done": True, "began": 0.0, "seconds": 1.0}
    artefacts.write_json(tmp_path / "lut" / "made_from.json", mark)

    def stage_of_table():
        how = (config.space, config.lut, config.kernels, config.train.crop, distilled)
        records = (laid_out.problem, laid_out.deployed)
        return populate_table.populate_table(tmp_path, *records, *how, {}, [])[0]

    assert (stage_of_table().done, stage_of_table().hash) == (True, "older")
    config.lut.time_budget_s = 5.0
    with pytest.raises(InputError, match=r"\(time_budget_s: 0\.0, now 5\.0\)"):
        stage_of_table()
