"""Profiling, auditing and rehearsing a run's search space; the script for boards."""

import itertools
import json
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys

import pytest

import chip
from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.export import runtimes
from qnas_jax.export.runtimes import Runtime
from qnas_jax.hardware import board, measured, size
from qnas_jax.nn.trace import trace
from qnas_jax.profiling import audit, probes, profile
from qnas_jax.profiling.timing import Effort
from qnas_jax.run import artefacts
from qnas_jax.run.stage import Stage
from qnas_jax.stages import audit as audit_stage
from qnas_jax.stages import dry_run

ROOT = pathlib.Path(__file__).parents[2]
QUICK = Effort(width=1.0, limit_s=0.0, bursts=2, burst_s=0.0, runs=2, warm_up=0)


@pytest.fixture
def smoke():
    config = runpy.run_path(str(ROOT / "configs" / "smoke.py"))["get_config"]()
    config.space.w_bits, config.space.a_bits = (8, 4), (8, 6)
    return config


def filled(config, tmp_path, runtime):
    """A setting with the table that a runtime gives."""
    laid_out = chip.prepared(config, tmp_path)
    where = (laid_out.problem.student, laid_out.searched)
    wanted = probes.layers(*where, laid_out.bits, laid_out.image_shape)
    table = tmp_path / "t.csv"
    profile.fill(table, wanted, runtime, 1, QUICK)
    config.hardware.table = str(table)
    return chip.prepared(config, tmp_path)


def drawn(laid_out, count):
    chosen, seed = laid_out.config.space, laid_out.config.seed
    return audit_stage.draw(laid_out.searched, chosen.bits, False, count, seed)


def audited(laid_out, count, runtime, threads, effort, file):
    """An audit with the run's own seed and table."""
    config, image_size = laid_out.config, laid_out.image_shape[:2]
    by = (runtime.name, runtime.version, runtimes.device(), threads)
    conditions = audit.Conditions(*by, *image_size, config.seed, config.hardware.table)
    how = (drawn(laid_out, count), conditions, runtime, effort, file)
    return audit_stage.audit(laid_out.problem, laid_out.deployed, *how)


def dry_run_of(laid_out, runtime):
    bits, image_shape = laid_out.bits, laid_out.image_shape
    dry_run.dry_run(laid_out.problem, bits, image_shape, runtime)


def test_a_table_of_the_whole_space_is_what_the_search_needs(smoke, tmp_path):
    laid_out = filled(smoke, tmp_path, runtimes.onnxruntime())
    rows = measured.read(tmp_path / "t.csv")
    assert not measured.missing(
        rows, laid_out.deployed.places, laid_out.searched.ops, laid_out.bits
    )
    chip.check_target(laid_out)
    assert min(laid_out.deployed.fixed()["latency_ms"].values()) > 0


@pytest.fixture
def adding(monkeypatch):
    """A runtime by whose clock a network takes 1 s, and 3 s for each byte of its weights."""
    now = 0.0

    def file(network):
        return str(sum(conv.weights.nbytes for conv in network.convs)).encode()

    def load(path, threads):
        def run():
            nonlocal now
            now += 1 + 3 * int(path.read_text())

        return run

    real = profile.timing.timed
    monkeypatch.setattr(
        profile.timing, "timed", lambda loads, effort: real(loads, effort, clock=lambda: now)
    )

    def unused(*_):
        raise AssertionError("not asked for")

    return Runtime("fake", "1.0", ".fake", size.TFLITE, file, load, unused, unused, "")


def test_an_audit_of_a_runtime_that_adds_up_finds_no_error(smoke, tmp_path, adding):
    laid_out = filled(smoke, tmp_path, adding)
    found = audited(laid_out, 12, adding, 1, QUICK, tmp_path / "audit.csv")
    verdict = audit.verdict(found)
    assert (verdict["subnets"], verdict["latency_tau"], verdict["size_exact"]) == (12, 1.0, True)
    assert verdict["latency_mape"] == pytest.approx(0, abs=1e-3)
    assert len({one.subnet for one in found}) == 12
    for one in found:
        subnet = space.parse_subnet(one.subnet)
        units = [
            u for u in trace(laid_out.problem.student(subnet), laid_out.image_shape).units if u.conv
        ]
        convs = [unit.conv for unit in units]
        bits = [subnet[u.site.block][u.site.layer].w_bits if u.site else 8 for u in units]
        exact = sum(int(size.conv_bytes(c, b)) for c, b in zip(convs, bits, strict=True))
        assert one.table_bytes == one.size_bytes == exact
        stored = sum(conv.weights + 12 * conv.out_channels for conv in convs)
        stored += 8 * sum({conv.out_channels for conv in convs})
        assert one.stored_bytes == stored, "bytes, a scale of each bias, zero points once"


def test_an_interrupted_audit_goes_on(smoke, tmp_path, adding, monkeypatch):
    laid_out, file = filled(smoke, tmp_path, adding), tmp_path / "a" / "audit.csv"
    whole = audited(laid_out, 8, adding, 1, QUICK, tmp_path / "whole.csv")
    latencies, measured_now = profile.latencies, []

    def stopped(networks, *how):
        for number, found in enumerate(latencies(networks, *how)):
            if number == 5:
                raise KeyboardInterrupt
            yield found

    def counted(networks, *how):
        measured_now.extend(networks)
        return latencies(networks, *how)

    monkeypatch.setattr(profile, "latencies", stopped)
    with pytest.raises(KeyboardInterrupt):
        audited(laid_out, 8, adding, 1, QUICK, file)
    kept = file.read_text().splitlines()
    assert len(kept) == 1 + 5
    monkeypatch.setattr(profile, "latencies", counted)
    found = audited(laid_out, 8, adding, 1, QUICK, file)
    assert [one._replace(latency_ms=0) for one in found] == [
        one._replace(latency_ms=0) for one in whole
    ]
    assert [one.latency_ms for one in found] == pytest.approx([one.latency_ms for one in whole])
    assert file.read_text().splitlines()[: len(kept)] == kept
    assert sorted(measured_now) == sorted({one.subnet for one in whole} - _subnets(kept))
    more = audited(laid_out, 10, adding, 1, QUICK, file)
    assert more[:8] == found
    assert len(measured_now) == 3 + 2, "further subnets are added"


def _subnets(lines):
    return {line.split(",")[0] for line in lines[1:]}


def test_an_audit_does_not_go_on_with_what_was_made_otherwise(smoke, tmp_path, adding):
    laid_out, file = filled(smoke, tmp_path, adding), tmp_path / "audit.csv"
    audited(laid_out, 3, adding, 1, QUICK, file)
    text, table = file.read_text(), tmp_path / "t.csv"

    def refused(told, changed=laid_out, runtime=adding, threads=1):
        with pytest.raises(InputError, match=rf"^{re.escape(str(file))}: {told}.*delete it$"):
            audited(changed, 3, runtime, threads, QUICK, file)

    refused("was made with threads '1', now it is '2'", threads=2)
    refused("was made with runtime_version '1.0'", runtime=adding._replace(version="2.0"))
    smoke.seed = 1
    refused("was made with seed '0', now it is '1'", chip.prepared(smoke, tmp_path))
    smoke.seed = 0
    smoke.hardware.table = str(shutil.copy(table, tmp_path / "copy.csv"))  # the same table
    audited(chip.prepared(smoke, tmp_path), 3, adding, 1, QUICK, file)
    smoke.hardware.table = str(table)
    lines = table.read_text().splitlines()
    stem = next(i for i, line in enumerate(lines) if line.startswith("stem"))
    cells = lines[stem].split(",")
    cells[10] = str(2 * float(cells[10]))
    table.write_text("\n".join([*lines[:stem], ",".join(cells), *lines[stem + 1 :]]) + "\n")
    refused("is of another table, which gave ", chip.prepared(smoke, tmp_path))
    table.write_text("\n".join(lines) + "\n")
    for damaged in (
        text.replace("stored_bytes", "bytes"),
        text[: -len(str(table)) - 5],
        text.replace(",1.0,", ",,"),
        text.replace(",1.0,", ",nan,"),
    ):
        file.write_text(damaged)
        refused("")
    file.write_text(text)
    assert len(audited(laid_out, 3, adding, 1, QUICK, file)) == 3


def test_an_audit_of_a_table_with_a_hole_is_refused_before_anything_is_timed(
    smoke, tmp_path, adding, monkeypatch
):
    filled(smoke, tmp_path, adding)
    table = tmp_path / "t.csv"
    lines = [line for line in table.read_text().splitlines() if "block3/layer0,k5e2" not in line]
    table.write_text("\n".join(lines) + "\n")
    monkeypatch.delattr(profile, "latencies")
    with pytest.raises(InputError, match=r"t\.csv: lacks layers of .*qnas profile_latency"):
        audited(chip.prepared(smoke, tmp_path), 12, adding, 1, QUICK, tmp_path / "audit.csv")


def test_the_seed_decides_which_subnets_are_audited(smoke, tmp_path):
    first = drawn(chip.prepared(smoke, tmp_path), 10)
    assert first == drawn(chip.prepared(smoke, tmp_path), 10)
    smoke.seed = 1
    assert first != drawn(chip.prepared(smoke, tmp_path), 10)


def test_a_small_space_is_audited_whole(smoke, tmp_path):
    smoke.space.kernels, smoke.space.expansions = (3, 5), (3,)
    smoke.space.depths = (1, 1, 1, 1, 1, 1)
    smoke.space.w_bits = smoke.space.a_bits = (8,)
    assert len(drawn(chip.prepared(smoke, tmp_path), 100)) == 2**6


def test_the_extremes_are_the_smallest_and_the_largest_of_all(smoke, tmp_path):
    laid_out = chip.prepared(smoke, tmp_path)
    block = laid_out.searched.blocks[0]
    choices = [space.Choice(op, *pair) for pair in laid_out.bits for op in laid_out.searched.ops]
    paths = list(itertools.product(choices, repeat=block.depth))
    sizes = [size.subnet_bytes([block], (path,)) for path in paths]
    small, large = dry_run.extremes(laid_out.searched, laid_out.bits)
    assert size.subnet_bytes([block], small[:1]) == min(sizes)
    assert size.subnet_bytes([block], large[:1]) == max(sizes)
    for subnet in (small, large):
        assert all(len({choice[1:] for choice in choices}) == 1 for choices in subnet)
        assert space.parse_subnet(space.format_subnet(subnet)) == subnet


def test_what_can_be_exported_passes_the_rehearsal(smoke, tmp_path):
    dry_run_of(chip.prepared(smoke, tmp_path), runtimes.onnxruntime())


def test_what_a_runtime_does_not_run_is_refused_in_one_line(smoke, tmp_path):
    def load(path, threads):
        raise RuntimeError("no kernel for Conv\nat 0x12345")

    laid_out = chip.prepared(smoke, tmp_path)
    small = space.format_subnet(dry_run.extremes(laid_out.searched, laid_out.bits)[0])
    broken = runtimes.onnxruntime()._replace(load=load)
    with pytest.raises(InputError) as error:
        dry_run_of(laid_out, broken)
    assert str(error.value) == (
        f"onnxruntime {broken.version} does not run the smallest subnet {small} "
        "(no kernel for Conv); remove from the space what it does not run"
    )


SSH = """#!/bin/bash
# The board is a folder of this machine, and its tool prints what such tools print.
command=${@: -1}
case $command in
    mkdir*) ;;
    *broken*) echo "ERROR: no such op"; exit 1 ;;
    *crash*) echo "count=1 curr=9" ;;
    *two.tflite*) printf "count=1 curr=9\ncount=50 first=9 curr=9 min=9 max=9 avg=2900 std=9\n" ;;
    *) printf "count=1 curr=9\ncount=50 first=9 curr=9 min=9 max=9 avg=1500 std=9\n" ;;
esac
"""


def test_the_script_for_boards_fills_a_table_and_goes_on(tmp_path):
    layer = measured.ProbeKey("block1/layer0", "k3e6", 48, 96, 8, 16, 2, 1, 8, 8)
    names = {"one.tflite": board.of_call("call1"), "two.tflite": board.of_call("call2")}
    names |= {"broken.tflite": layer._replace(path="k3e3"), "fine.tflite": layer}
    files, tools, table = tmp_path / "files", tmp_path / "bin", tmp_path / "t.csv"
    for folder in (files, tools):
        folder.mkdir()
    board.write_manifest(files, names)
    for name in names:
        (files / name).write_bytes(b"model")
    for tool, text in (("ssh", SSH), ("scp", "#!/bin/bash\n")):
        (tools / tool).write_text(text)
        (tools / tool).chmod(0o755)
    path = f"{tools}:{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    command = ["launch/jobs/profile_board.sh", str(files), str(table)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "broken.tflite: failed" in done.stderr
    (row,) = measured.read(table)
    assert (row.probe, row.runtime, row.count) == (layer, "litert", 50)
    assert row.latency_ms == pytest.approx(1.5 - (2 * 1.5 - 2.9))
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert again.stdout.splitlines()[-1] == f"1 of 2 were measured: {table}"
    assert len(measured.read(table)) == 1
    assert again.returncode == 0
    # One that ends after its warm-up, in a manifest that a spreadsheet has saved.
    board.write_manifest(files, names | {"crash.tflite": layer._replace(path="k5e6")})
    (files / "crash.tflite").write_bytes(b"model")
    manifest = (files / board.MANIFEST).read_bytes().replace(b"\n", b",,\r\n")
    (files / board.MANIFEST).write_bytes(b"\xef\xbb\xbf" + manifest + b",,,\r\n\r\n")
    crashed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert crashed.returncode == 2, crashed.stderr
    assert crashed.stderr.splitlines()[-2:] == [
        f"{files / 'crash.tflite.log'}: no line with the mean of the runs (that of the warm-up "
        "alone); delete it to run the file again",
        f"error: logs without figures, see above: 1; {table} has the others",
    ]
    assert measured.read(table) == [row]


def launch(program, *arguments):
    command = [
        sys.executable,
        "launch/main.py",
        program,
        "--config",
        "configs/smoke.py",
        *arguments,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("profile_latency", (), "--table: must be the CSV file to fill"),
        ("profile_latency", ("--runtime=tvm",), "--runtime=tvm: must be onnxruntime or litert"),
        ("audit", (), "--table: must be a table of measured latencies"),
        ("latency", ("--workdir=nowhere",), "nowhere: holds no retrained subnet"),
        ("export", ("--workdir=nowhere",), "nowhere: holds no retrained subnet"),
    ],
)
def test_errors_take_one_line(program, arguments, message):
    done = launch(program, *arguments)
    assert (done.returncode, done.stderr) == (2, f"error: {message}\n")


def test_latencies_are_those_of_the_run_that_the_config_is_of(tmp_path):
    config = runpy.run_path(str(ROOT / "configs" / "smoke.py"))["get_config"]()
    subnet = tmp_path / "retrain" / "k3e2.w8a8" / "metrics.json"
    artefacts.write_json(subnet, {"subnet": "k3e2.w8a8"})
    network, depths = {"network": config.network}, {"depths": config.space.depths}
    Stage(tmp_path / "teacher", network).finish()
    Stage(tmp_path / "supernet", depths).finish()
    for argument, difference in (
        (
            "network.width=0.5",
            "teacher was made from other settings (network.width: 0.25, now 0.5)",
        ),
        ("space.depths=(2,1,1,1,1,2)", "supernet was made from other settings (depths: "),
    ):
        done = launch("latency", f"--workdir={tmp_path}", f"--config.{argument}")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(f"error: {tmp_path}/{difference}")
        assert done.stderr.endswith("; give the --config of its run\n")
    subnet.write_text('{"subnet": "k3e')
    done = launch("latency", f"--workdir={tmp_path}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: {subnet}: cannot be read (Unterminated string")


@pytest.mark.slow
def test_the_programs_work_together(tmp_path):
    table, quick = f"--table={tmp_path / 't.csv'}", ("--limit=0", "--width=1")
    assert launch("profile_latency", table, *quick, "--blocks=2", "--float").returncode == 0
    done = launch("audit", table, *quick, "--subnets=5", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "hardware" / "audit.json").read_text())
    assert found["subnets"] == 5
    assert found["latency_mape"] < 50
    assert (tmp_path / "hardware" / "audit.svg").read_text().startswith("<svg")
