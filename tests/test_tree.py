import jax.numpy as jnp
import numpy as np
import pytest
import reference

from qnas_jax import metrics, space, tree

OPS = (space.Op(3, 2), space.Op(5, 3), space.Op(7, 2))
NARROW = space.Block(in_channels=8, channels=16, stride=2, dilation=1, depth=2)
DILATED = space.Block(in_channels=16, channels=16, stride=1, dilation=2, depth=3)


def _scores(params, block, ops, bits, calibration, x, target, nodes_per_pass=1):
    w_bits, a_bits = (jnp.int32(b) for b in bits)
    calibrated = tree.calibrate(params, block, ops, w_bits, a_bits, calibration, nodes_per_pass)
    variance = metrics.channel_variance(target)
    return tree.noise(calibrated, x, target, variance) / (target.size // target.shape[-1])


def _against_module(block, ops, bits, rows, size, tolerance):
    params = reference.random_block(block, ops)
    calibration, _ = reference.random_maps(block, 4, size, seed=1)
    x, target = reference.random_maps(block, 4, size, seed=2)
    scores = _scores(params, block, ops, bits, calibration, x, target)
    worst = 0.0
    for row in rows:
        choices = reference.choices_of_row(block, ops, row, *bits)
        alone = reference.path_nsr(params, block, choices, calibration, x, target)
        worst = max(worst, abs(scores[row] - alone) / alone)
    print(f"largest relative difference over {len(rows)} rows: {worst:.2g}")
    assert worst < tolerance


@pytest.mark.parametrize("block", [NARROW, DILATED], ids=["strided", "dilated"])
@pytest.mark.parametrize("bits", [(8, 8), (4, 6)], ids=["w8a8", "w4a6"])
def test_a_row_is_its_path_evaluated_alone_through_the_module(block, bits):
    rows = np.random.default_rng(0).choice(len(OPS) ** block.depth, 3, replace=False)
    _against_module(block, OPS, bits, rows, (9, 13), tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(6))
def test_fifty_rows_of_each_block_of_table_one(number):
    ops = tuple(space.Op(k, e) for k in (3, 5, 7) for e in (3, 6))
    blocks = space.mobilenet_v2_blocks(0.5, (1, 2, 2, 1, 1, 1, 1), (1, 1, 1, 2, 2, 4, 4))[1:]
    block = blocks[number]
    total = len(ops) ** block.depth
    rows = np.random.default_rng(number).choice(total, min(50, total), replace=False)
    _against_module(block, ops, (8, 8), rows, (12, 20), tolerance=1e-4)


def test_scores_do_not_depend_on_how_many_nodes_run_at_once():
    params = reference.random_block(DILATED, OPS)
    calibration, _ = reference.random_maps(DILATED, 2, (6, 7), seed=1)
    x, target = reference.random_maps(DILATED, 2, (6, 7), seed=2)
    one = _scores(params, DILATED, OPS, (8, 8), calibration, x, target)
    for nodes in (2, 9):
        many = _scores(params, DILATED, OPS, (8, 8), calibration, x, target, nodes)
        np.testing.assert_allclose(many, one, rtol=1e-5)


def test_chunks_of_images_add_up_to_all_images():
    params = reference.random_block(NARROW, OPS)
    calibration, _ = reference.random_maps(NARROW, 2, (8, 8), seed=1)
    x, target = reference.random_maps(NARROW, 4, (8, 8), seed=2)
    variance = metrics.channel_variance(target)
    calibrated = tree.calibrate(params, NARROW, OPS, jnp.int32(8), jnp.int32(8), calibration)
    whole = tree.noise(calibrated, x, target, variance)
    halves = [tree.noise(calibrated, x[i : i + 2], target[i : i + 2], variance) for i in (0, 2)]
    np.testing.assert_allclose(sum(halves), whole, rtol=1e-5)


def test_fewer_bits_are_noisier():
    params = reference.random_block(NARROW, OPS)
    calibration, _ = reference.random_maps(NARROW, 2, (8, 8), seed=1)
    x, _ = reference.random_maps(NARROW, 2, (8, 8), seed=2)
    float_like = reference.random_maps(NARROW, 2, (8, 8), seed=3)[1]
    scores = {
        bits: _scores(params, NARROW, OPS, (bits, bits), calibration, x, float_like)
        for bits in (8, 2)
    }
    assert not np.allclose(scores[8], scores[2], rtol=1e-3)


def test_all_bitwidths_share_one_program_for_each_layer_shape():
    params = reference.random_block(NARROW, OPS)
    calibration, _ = reference.random_maps(NARROW, 2, (5, 11), seed=1)
    x, target = reference.random_maps(NARROW, 2, (5, 11), seed=2)
    _scores(params, NARROW, OPS, (8, 8), calibration, x, target)
    compiled = tree._run._cache_size()
    for bits in ((2, 7), (4, 4), (6, 3)):
        _scores(params, NARROW, OPS, bits, calibration, x, target)
    assert tree._run._cache_size() == compiled
