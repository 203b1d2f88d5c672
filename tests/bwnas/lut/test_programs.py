import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cpu
import reference
from qnas_jax import metrics, space
from qnas_jax.bwnas.lut import prefix_tree, programs
from qnas_jax.kernels import int8
from qnas_jax.quant import calibrate

OPS = (space.Op(3, 2), space.Op(5, 3))
BLOCK = space.Block(in_channels=8, channels=8, stride=1, dilation=1, depth=3)


def _shape(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


# Images of sizes that no other test has, as programs are kept.
@pytest.mark.parametrize(("columns", "default"), [(13, None), (17, jax.devices()[0])])
@pytest.mark.parametrize("kernel", [None, "XLA", pytest.param("C++", marks=cpu.needs_vnni)])
def test_a_walk_finds_its_programs_compiled(kernel, columns, default, caplog):
    assert kernel in (None, "XLA", int8.find_kernel().kernel)
    place = jax.devices()[0]
    maps = reference.random_maps(BLOCK, 2, (5, columns))
    x, target = (jax.device_put(one, place) for one in maps)
    params = jax.device_put(reference.random_block(BLOCK, OPS), place)
    bits = [[(8, 8)], [(8, 8), (4, 4)], [(8, 8)]]
    built = prefix_tree.build(params, BLOCK, OPS, bits, calibrate.min_max, kernel=kernel)
    variance = jnp.asarray(np.asarray(metrics.channel_variance(target)))
    to_calibrate = list(programs.of_calibration(built, _shape(x), 2))
    to_score = list(programs.of_noise(built, _shape(x), _shape(target), 2))
    assert len(to_calibrate) == len(to_score) == BLOCK.depth
    # Within `parallel.spread` there is a default device, which belongs to the key of a program.
    programs.compile_all(itertools.chain(to_calibrate, to_score, to_score), default)
    with caplog.at_level(logging.WARNING), jax.log_compiles(), jax.default_device(default):
        found = prefix_tree.calibrate(built, x, 2)
        prefix_tree.noise(built, found, x, target, variance, 2)
    compiled = [r.getMessage() for r in caplog.records if "XLA compilation" in r.getMessage()]
    names = ("calibrate_layer", "run_layer", "nsr_")
    assert not [line for line in compiled if any(name in line for name in names)]


def test_equal_programs_are_compiled_once():
    x = jax.ShapeDtypeStruct((2, 5, 14, 8), jnp.float32)
    params = reference.random_block(BLOCK, OPS)
    trees = [
        prefix_tree.build(params, BLOCK, OPS, [[b]] * 3, calibrate.min_max)
        for b in [(8, 8), (4, 4)]
    ]
    keys = [[program.key() for program in programs.of_calibration(t, x, 1)] for t in trees]
    assert keys[0] == keys[1]
    # The layers of this block are alike, and each pass is of one node.
    assert len(set(keys[0])) == 1
