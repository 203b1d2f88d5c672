import logging
import os
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kendalltau

import reference
from qnas_jax import metrics, space
from qnas_jax.bwnas import search_front
from qnas_jax.bwnas.lut import agreement, populate, table, workload
from qnas_jax.errors import InputError
from qnas_jax.quant import calibrate

OPS = (space.Op(3, 2), space.Op(5, 3))
SEARCHED = space.Space(
    blocks=(
        space.Block(in_channels=8, channels=8, stride=1, dilation=1, depth=2),
        space.Block(in_channels=8, channels=16, stride=2, dilation=1, depth=1),
    ),
    ops=OPS,
)
PARAMS = [reference.random_block(block, OPS, seed) for seed, block in enumerate(SEARCHED.blocks)]
MAPS = [
    np.asarray(reference.random_maps(SEARCHED.blocks[0], 6, (18, 24), seed=3)[0]),
    np.asarray(reference.random_maps(SEARCHED.blocks[1], 6, (18, 24), seed=4)[0]),
    np.asarray(reference.random_maps(SEARCHED.blocks[1], 6, (18, 24), seed=4)[1]),
]
BITS = ((8, 8), (4, 6))


def features(images):
    return tuple(jnp.asarray(maps[images.start : images.stop]) for maps in MAPS)


def job(folder, chunks, params=PARAMS, features=features, per_layer=False, kernel=None):
    return populate.Job(
        features,
        params,
        SEARCHED,
        table.parts_of(SEARCHED, BITS, per_layer),
        calibration=range(3),
        chunks=chunks,
        method=populate.Method(calibrate.min_max, kernel=kernel),
        folder=folder,
    )


TWO = [range(0, 3), range(3, 6)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return populate.populate(job(tmp_path_factory.mktemp("lut"), TWO))


def assert_rows_are_paths(nsr, rows, tested):
    for row in tested:
        block = int(rows.block[row])
        alone = reference.path_nsr(
            PARAMS[block],
            SEARCHED.blocks[block],
            rows.choices(row),
            *map(jnp.asarray, (MAPS[block][:3], MAPS[block], MAPS[block + 1])),
        )
        assert nsr[row] == pytest.approx(alone, rel=1e-4)


def test_every_row_is_its_path_evaluated_alone(whole):
    rows = table.build(whole.nsr, SEARCHED, table.parts_of(SEARCHED, BITS, per_layer=False))
    assert len(whole.nsr) == 2 * (4 + 2)
    assert_rows_are_paths(whole.nsr, rows, range(12))


def test_every_row_of_bitwidths_per_layer_is_its_path_evaluated_alone(tmp_path):
    work = job(tmp_path, TWO, per_layer=True)
    nsr = populate.populate(work).nsr
    rows = table.build(nsr, SEARCHED, work.parts)
    assert len(nsr) == 4 * 4 + 4
    assert len({(int(rows.block[r]), rows.choices(r)) for r in range(20)}) == 20
    assert_rows_are_paths(nsr, rows, range(0, 20, 3))


def test_a_table_in_int8_is_that_in_float32(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "qnas_jax.bwnas.lut.populate"):
        exact, coded = (
            populate.populate(job(tmp_path / str(choice), TWO, per_layer=True, kernel=choice)).nsr
            for choice in (None, "XLA")
        )
    np.testing.assert_allclose(coded, exact, rtol=1e-3)
    assert "6 images in float32" in caplog.text and "6 images in int8" in caplog.text


def test_unequal_chunks_give_the_same_table(whole, tmp_path):
    other = populate.populate(job(tmp_path, [range(0, 4), range(4, 6)]))
    np.testing.assert_allclose(whole.nsr, other.nsr, rtol=1e-5)
    assert other.images == whole.images == 6


def test_a_population_that_was_stopped_goes_on_with_the_unit_it_was_at(whole, tmp_path):
    calls = []

    def broken(images):
        calls.append(images)
        if len(calls) == 5:  # behind both chunks for the targets, calibration, and one chunk
            raise KeyboardInterrupt
        return features(images)

    with pytest.raises(KeyboardInterrupt):
        populate.populate(job(tmp_path, TWO, features=broken))
    assert 0 < len(list(tmp_path.glob("noise-*.npy"))) < 8
    resumed = populate.populate(job(tmp_path, TWO))
    np.testing.assert_array_equal(whole.nsr, resumed.nsr)


def test_when_time_is_up_every_row_has_the_same_images(whole, tmp_path, caplog):
    chunks = [range(i, i + 1) for i in range(6)]
    found = populate.populate(job(tmp_path, chunks), time_budget_s=1e-6)
    assert found.images == populate.LEAST_CHUNKS
    assert found.by_chunk.shape == (2, 12)
    np.testing.assert_allclose(found.nsr, found.by_chunk.mean(0), rtol=1e-6)
    rows = table.build(found.nsr, SEARCHED, table.parts_of(SEARCHED, BITS, per_layer=False))
    with caplog.at_level(logging.INFO, "qnas_jax.bwnas.lut.agreement"):
        taus = agreement.of_halves(found, rows)
    assert len(taus) == 2
    assert taus[0] == pytest.approx(kendalltau(*found.by_chunk[:, :8]).statistic, abs=1e-4)
    assert "two halves of 2 images" in caplog.text
    # What is missing is done later, and then nothing tells that it was stopped.
    again = populate.populate(job(tmp_path, chunks))
    np.testing.assert_allclose(again.nsr, whole.nsr, rtol=1e-5)


@pytest.mark.parametrize("kernel", [None, "XLA"], ids=["float32", "int8"])
def test_a_path_that_gives_no_finite_output_is_named_and_left_out(tmp_path, caplog, kernel):
    broken = reference.random_block(SEARCHED.blocks[0], OPS, 0)
    project = broken["layer1"]["k5e3"]["project"]
    project["kernel"] = project["kernel"].at[0, 0, 0, 0].set(jnp.nan)
    work = job(tmp_path, [range(0, 6)], params=[broken, PARAMS[1]], kernel=kernel)
    nsr = populate.populate(work).nsr
    np.testing.assert_array_equal(np.isfinite(nsr), 2 * [1, 0, 1, 0] + 4 * [1])
    with caplog.at_level(logging.WARNING, "qnas_jax.bwnas.lut.table"):
        rows = table.build(nsr, SEARCHED, work.parts)
    assert "block 1, k3e2-k5e3.w8a8: NSR is not finite; left out" in caplog.text
    points = search_front.search(rows)
    assert points
    assert not any(point.subnet.split("_")[0].split(".")[0].endswith("k5e3") for point in points)


def test_the_table_holds_each_path_at_each_bitwidth_with_its_size(whole, tmp_path):
    rows = table.build(whole.nsr, SEARCHED, table.parts_of(SEARCHED, BITS, per_layer=False))
    choices = (space.Choice(OPS[1], 4, 6), space.Choice(OPS[0], 4, 6))
    (row,) = [r for r in rows.rows_of(0) if rows.choices(r) == choices]
    # k5e3 then k3e2 at 4 bits: expand, depthwise and project of 8 channels, with a scale
    # and a bias of 4 bytes for each output channel.
    weights = 8 * 24 + 25 * 24 + 24 * 8 + 8 * 16 + 9 * 16 + 16 * 8
    channels = 24 + 24 + 8 + 16 + 16 + 8
    assert rows.costs["size_bytes"][row] == weights // 2 + 8 * channels
    table.save(tmp_path / "lut.npz", rows)
    again = table.load(tmp_path / "lut.npz")
    np.testing.assert_array_equal(again.nsr, rows.nsr)
    assert again.ops == rows.ops


PROCESS = """
import sys, jax
if int(sys.argv[1]) > 1:
    jax.distributed.initialize(sys.argv[4], int(sys.argv[1]), int(sys.argv[2]))
import pathlib, test_populate
from qnas_jax.bwnas.lut import populate, table
from qnas_jax.kernels import int8
kernel = int8.find_kernel().kernel
folder = pathlib.Path(sys.argv[3])
job = test_populate.job(folder, test_populate.TWO, per_layer=True, kernel=kernel)
found = populate.populate(job)
if jax.process_index() == 0:
    rows = table.build(found.nsr, test_populate.SEARCHED, job.parts)
    table.save(folder / "lut.npz", rows)
"""


def _table_of(folder, processes, devices):
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path]),
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(processes), str(i), str(folder), address],
            env=environment,
        )
        for i in range(processes)
    ]
    assert [process.wait(timeout=300) for process in running] == [0] * processes
    return (folder / "lut.npz").read_bytes()


@pytest.mark.slow
def test_any_number_of_devices_and_processes_writes_the_same_file(tmp_path):
    one = _table_of(tmp_path / "one", processes=1, devices=1)
    assert _table_of(tmp_path / "devices", processes=1, devices=3) == one
    assert _table_of(tmp_path / "processes", processes=2, devices=1) == one
    assert _table_of(tmp_path / "both", processes=2, devices=2) == one


def test_the_target_variance_is_that_of_all_images_not_of_a_chunk(whole, tmp_path):
    """Chunks as unlike as can be: a table scored by its chunks' own variance would differ."""
    scale = np.array([1, 1, 1, 9, 9, 9], np.float32)[:, None, None, None]

    def uneven(images):
        x, y, z = features(images)
        return x, y, z * scale[images.start : images.stop]

    parts = populate.populate(job(tmp_path / "a", TWO, features=uneven))
    at_once = populate.populate(job(tmp_path / "b", [range(0, 6)], features=uneven))
    np.testing.assert_allclose(parts.nsr, at_once.nsr, rtol=1e-5)
    variance = metrics.channel_variance(jnp.asarray(MAPS[2] * scale))
    assert float(variance.mean()) > 30


@pytest.mark.parametrize(
    ("node_mib", "free_gib", "expected"),
    [(20, None, 2), (24, None, 2), (25, None, 1), (100, 10, 40), (1, 10, 64), (8000, 10, 1)],
)
def test_as_many_nodes_run_at_once_as_memory_allows(monkeypatch, node_mib, free_gib, expected):
    free = free_gib and free_gib * 2**30
    monkeypatch.setattr(populate.parallel, "free_bytes", lambda _: free)
    assert populate.nodes_per_pass(node_mib * 2**20, jax.devices()[0]) == expected


@pytest.mark.parametrize(
    ("images", "kernel", "expected"),
    [(1, "C++", 64), (32, "C++", 12), (500, "C++", 1), (1, "XLA", 2), (1, None, 1)],
)
def test_more_nodes_run_at_once_where_layers_are_fused(monkeypatch, images, kernel, expected):
    monkeypatch.setattr(populate.parallel, "free_bytes", lambda _: None)
    work = workload.Work(1, 1, node_values=10 * 2**20, kept_values=2**16)
    assert populate.nodes_to_score(work, images, kernel, jax.devices()[0]) == expected


def test_a_result_of_another_size_is_named_before_anything_is_scored(tmp_path, monkeypatch):
    wrong = job(tmp_path, TWO).noise_file(1, 0)
    np.save(wrong, np.zeros(3))
    monkeypatch.setattr(populate, "_announce", lambda *_: None)
    monkeypatch.setattr(populate, "_Worker", lambda *_: pytest.fail("something was computed"))
    with pytest.raises(InputError, match=re.escape(f"{wrong}: cannot be read (it must have")):
        populate.populate(job(tmp_path, TWO))
