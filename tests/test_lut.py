import logging

import jax.numpy as jnp
import numpy as np
import pytest
import reference

from qnas_jax import lut, metrics, space, table
from qnas_jax.search import front

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
    np.asarray(reference.random_maps(SEARCHED.blocks[0], 6, (6, 8), seed=3)[0]),
    np.asarray(reference.random_maps(SEARCHED.blocks[1], 6, (6, 8), seed=4)[0]),
    np.asarray(reference.random_maps(SEARCHED.blocks[1], 6, (6, 8), seed=4)[1]),
]
BITS = ((8, 8), (4, 6))


def features(images):
    return tuple(jnp.asarray(maps[images.start : images.stop]) for maps in MAPS)


def populate(partial, chunks, params=PARAMS, features=features):
    return lut.populate(
        features,
        params,
        SEARCHED,
        BITS,
        calibration=range(3),
        chunks=chunks,
        nodes_per_pass=1,
        partial=partial,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return populate(tmp_path_factory.mktemp("lut") / "p.npz", [range(0, 3), range(3, 6)])


def test_every_row_is_its_path_evaluated_alone(whole):
    for number, block in enumerate(SEARCHED.blocks):
        calibration, x, target = (
            jnp.asarray(MAPS[number][:3]),
            jnp.asarray(MAPS[number]),
            jnp.asarray(MAPS[number + 1]),
        )
        for b, bits in enumerate(BITS):
            alone = [
                reference.path_nsr(
                    PARAMS[number],
                    block,
                    reference.choices_of_row(block, OPS, row, *bits),
                    calibration,
                    x,
                    target,
                )
                for row in range(SEARCHED.rows(number))
            ]
            np.testing.assert_allclose(whole[number][b], alone, rtol=1e-4)


def test_unequal_chunks_give_the_same_table(whole, tmp_path):
    other = populate(tmp_path / "p.npz", [range(0, 4), range(4, 6)])
    for a, b in zip(whole, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_population_that_was_stopped_goes_on_with_the_chunk_it_was_at(whole, tmp_path):
    calls = []

    def broken(images):
        calls.append(images)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return features(images)

    chunks = [range(0, 3), range(3, 6)]
    with pytest.raises(KeyboardInterrupt):
        populate(tmp_path / "p.npz", chunks, features=broken)
    with np.load(tmp_path / "p.npz") as file:
        assert 0 < file["done"].sum() < 4
    resumed = populate(tmp_path / "p.npz", chunks)
    for a, b in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_path_that_gives_no_finite_output_is_named_and_left_out(tmp_path, caplog):
    broken = reference.random_block(SEARCHED.blocks[0], OPS, 0)
    kernel = broken["layer1"]["k5e3"]["project"]["kernel"]
    broken["layer1"]["k5e3"]["project"]["kernel"] = kernel.at[0, 0, 0, 0].set(jnp.nan)
    nsr = populate(tmp_path / "p.npz", [range(0, 6)], params=[broken, PARAMS[1]])
    assert np.isfinite(nsr[0][:, [0, 2]]).all()
    assert not np.isfinite(nsr[0][:, [1, 3]]).any()
    with caplog.at_level(logging.WARNING, "qnas_jax.lut"):
        rows = lut.make_table(nsr, SEARCHED, BITS)
    assert "block 1, k3e2-k5e3.w8a8: NSR is not finite; left out" in caplog.text
    points = front.search(rows, stem_bytes=0, head_bytes=0)
    assert points
    assert not any(point.subnet.split("_")[0].split(".")[0].endswith("k5e3") for point in points)


def test_the_table_holds_each_path_at_each_bitwidth_with_its_size(whole, tmp_path):
    rows = lut.make_table(whole, SEARCHED, BITS)
    assert len(rows.nsr) == len(BITS) * (4 + 2)
    choices = (space.Choice(OPS[1], 4, 6), space.Choice(OPS[0], 4, 6))
    (row,) = [r for r in rows.rows_of(0) if rows.choices(r) == choices]
    assert rows.nsr[row] == whole[0][1][2]
    # k5e3 then k3e2 at 4 bits: expand, depthwise and project of 8 channels, with a scale
    # and a bias of 4 bytes for each output channel.
    weights = 8 * 24 + 25 * 24 + 24 * 8 + 8 * 16 + 9 * 16 + 16 * 8
    channels = 24 + 24 + 8 + 16 + 16 + 8
    assert rows.costs["size_bytes"][row] == weights // 2 + 8 * channels
    table.save(tmp_path / "lut.npz", rows)
    again = table.load(tmp_path / "lut.npz")
    np.testing.assert_array_equal(again.nsr, rows.nsr)
    assert again.ops == rows.ops


def test_the_target_variance_is_that_of_all_images_not_of_a_chunk(whole, tmp_path):
    """Chunks as unlike as can be: a table scored by its chunks' own variance would differ."""
    scale = np.array([1, 1, 1, 9, 9, 9], np.float32)[:, None, None, None]

    def uneven(images):
        x, y, z = features(images)
        return x, y, z * scale[images.start : images.stop]

    parts = populate(tmp_path / "a.npz", [range(0, 3), range(3, 6)], features=uneven)
    at_once = populate(tmp_path / "b.npz", [range(0, 6)], features=uneven)
    np.testing.assert_allclose(parts[1], at_once[1], rtol=1e-5)
    variance = metrics.channel_variance(jnp.asarray(MAPS[2] * scale))
    assert float(variance.mean()) > 30
