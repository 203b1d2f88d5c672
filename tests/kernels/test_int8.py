"""Both forms of the convolutions of bytes against sums of integers in NumPy."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax.kernels import int8, native

HAS_CPP = native._cpu_multiplies_bytes() and shutil.which("c++")
CPP = pytest.param(True, id="c++", marks=pytest.mark.skipif(not HAS_CPP, reason="CPU or compiler"))
FORMS = [CPP, pytest.param(False, id="xla")]


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    assert not request.param or native.available()
    monkeypatch.setattr(int8, "_in_cpp", lambda: request.param)


def _norm(rng, channels, nodes=()):
    """Powers of two, whose products with sums are exact, so that a tie is one."""
    factor = 2.0 ** rng.integers(-12, -7, (*nodes, channels))
    offset = rng.integers(0, 2**13, (*nodes, channels)) / 2.0**6
    top = rng.choice([15, 63, 255], (*nodes, channels))
    return np.stack([factor, offset, top], -2).astype(np.float32)


def _normed(sums, norm):
    assert np.abs(sums).max() < 2**24
    return np.clip(np.rint(sums * norm[0].astype(np.float64) + norm[1]), 0, norm[2])


def _pointwise(x, w, norm):
    packed = int8.pack_pointwise(jnp.float32(w))
    return int8.pointwise(jnp.asarray(x), packed, jnp.asarray(norm))


def _correlated(x, w, stride, dilation):
    rows, columns = x.shape[1:3]
    k, pad = len(w), dilation * (len(w) - 1) // 2
    x = np.pad(x.astype(np.int64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    total = sum(
        x[:, i * dilation :, j * dilation :][:, :rows, :columns] * w[i, j]
        for i in range(k)
        for j in range(k)
    )
    return total[:, ::stride, ::stride]


# Channels of one vector and of less, of panels of 1 to 4 vectors, and inputs that fill no group.
@pytest.mark.parametrize(
    ("pixels", "inputs", "channels"),
    [
        *(((1, 3, 7), 8, c) for c in (1, 15, 16, 17, 32, 40, 64, 65, 96)),
        *(((2, 5, 9), i, 24) for i in (1, 2, 3, 6, 160)),
        *((shape, 12, 20) for shape in ((1, 1, 1), (1, 1, 5), (3, 10, 20))),
    ],
    ids=str,
)
def test_pointwise_is_that_of_integers(form, pixels, inputs, channels):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (*pixels, inputs)).astype(np.uint8)
    w, norm = rng.integers(-127, 128, (inputs, channels)), _norm(rng, channels)
    found = _pointwise(x, w, norm)
    np.testing.assert_array_equal(found, _normed(x.astype(np.int64) @ w, norm))


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "size", "channels"),
    [
        *((k, s, d, (9, 13), 8) for k in (1, 3, 5, 7) for s in (1, 2) for d in (1, 2, 4)),
        *((3, 1, 1, (4, 8), c) for c in (1, 15, 16, 17, 64, 65, 80)),
        *((7, 1, 4, size, 16) for size in ((1, 1), (1, 20), (20, 1), (3, 3), (16, 32))),
        *((5, 2, 3, size, 16) for size in ((1, 1), (2, 17), (11, 8))),
    ],
)
def test_depthwise_is_that_of_integers(form, kernel, stride, dilation, size, channels):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (2, *size, channels)).astype(np.uint8)
    w, norm = rng.integers(-127, 128, (kernel, kernel, channels)), _norm(rng, channels)
    packed = int8.pack_depthwise(jnp.float32(w))
    found = int8.depthwise(jnp.asarray(x), packed, jnp.asarray(norm), stride, dilation)
    np.testing.assert_array_equal(found, _normed(_correlated(x, w, stride, dilation), norm))


def test_nodes_share_weights_and_have_norms_of_their_own(form):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (3, 2, 9, 11, 24)).astype(np.uint8)
    w, norm = rng.integers(-127, 128, (24, 20)), _norm(rng, 20, (3,))
    packed = int8.pack_pointwise(jnp.float32(w))
    found = jax.vmap(int8.pointwise, (0, None, 0))(x, packed, norm)
    for node in range(3):
        expected = _normed(x[node].astype(np.int64) @ w, norm[node])
        np.testing.assert_array_equal(found[node], expected)
    w, norm = rng.integers(-127, 128, (3, 3, 24)), _norm(rng, 24, (3,))
    packed = int8.pack_depthwise(jnp.float32(w))
    run = jax.vmap(lambda x, norm: int8.depthwise(x, packed, norm, 1, 2))
    for node, got in enumerate(run(x, norm)):
        np.testing.assert_array_equal(got, _normed(_correlated(x[node], w, 1, 2), norm[node]))


@pytest.mark.parametrize("form", [CPP], indirect=True)
def test_sums_in_between_may_exceed_what_a_float_holds(form):
    x = np.full((1, 1, 1, 4096), 255, np.uint8)
    w = np.repeat([127, -127, 1, 0], [2047, 2047, 1, 1])[:, None]  # up to 66 million
    norm = np.array([[1.0], [-250.0], [255.0]], np.float32)
    found = _pointwise(x, w, norm)
    assert np.asarray(found).item() == 255 - 250


@pytest.mark.parametrize("form", [CPP], indirect=True)
@pytest.mark.parametrize("mapped", [(None, None, 0), (None, 0, None), (0, 0, 0)], ids=str)
def test_other_ways_to_map_it_are_refused_in_cpp(form, mapped):
    """Weights for each node, or norms without inputs of their own: the tree has neither."""
    x, w = jnp.zeros((2, 1, 3, 3, 8), jnp.uint8), native.pack_depthwise(jnp.ones((3, 3, 8)))
    w, norm = jnp.stack([w, w]), jnp.ones((2, 3, 8))
    arrays = [a if axis == 0 else a[0] for a, axis in zip((x, w, norm), mapped, strict=True)]
    run = jax.vmap(lambda x, w, norm: int8.depthwise(x, w, norm, 1, 1), mapped)
    with pytest.raises(jax.errors.JaxRuntimeError, match="shapes do not fit"):
        jax.block_until_ready(run(*arrays))
