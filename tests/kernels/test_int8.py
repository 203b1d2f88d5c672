"""INT8 convolutions: both kernels against sums of integers in NumPy, and against each other."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cpu
from qnas_jax.kernels import int8, native

KERNELS = [pytest.param("C++", marks=cpu.needs_vnni), "XLA"]


@pytest.fixture(params=KERNELS)
def kernel(request):
    if request.param == "C++":
        _load()
    return request.param


def _load():
    """C++, or a failure: where the CPU has VNNI, nothing is skipped."""
    cpu.compiler()
    assert int8.find_kernel() == ("C++", True, "")


def _norm(rng, channels, nodes=()):
    """Powers of two, whose products with sums are exact, so that a tie is one."""
    factor = 2.0 ** rng.integers(-12, -7, (*nodes, channels))
    offset = rng.integers(0, 2**13, (*nodes, channels)) / 2.0**6
    top = rng.choice([15, 63, 255], (*nodes, channels))
    return np.stack([factor, offset, top], -2).astype(np.float32)


def _normed(sums, norm):
    assert np.abs(sums).max() < 2**24
    return np.clip(np.rint(sums * norm[0].astype(np.float64) + norm[1]), 0, norm[2])


def _codes(rng, shape):
    return rng.integers(0, 256, shape).astype(np.uint8)


def _weights(rng, shape):
    return rng.integers(-127, 128, shape)


def _pointwise(x, w, norm, kernel):
    packed = jnp.asarray(int8.pack_pointwise(np.float32(w), kernel))
    run = jax.jit(int8.pointwise, static_argnums=3)
    return run(x, packed, norm, kernel)


def _depthwise(x, w, norm, stride, dilation, kernel):
    packed = jnp.asarray(int8.pack_depthwise(np.float32(w), kernel))
    run = jax.jit(int8.depthwise, static_argnums=(3, 4, 5))
    return run(x, packed, norm, stride, dilation, kernel)


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
def test_pointwise_is_that_of_integers(kernel, pixels, inputs, channels):
    rng = np.random.default_rng(0)
    x, w = _codes(rng, (*pixels, inputs)), _weights(rng, (inputs, channels))
    norm = _norm(rng, channels)
    found = _pointwise(x, w, norm, kernel)
    np.testing.assert_array_equal(found, _normed(x.astype(np.int64) @ w, norm))


@pytest.mark.parametrize(
    ("size", "stride", "dilation", "image", "channels"),
    [
        *((k, s, d, (9, 13), 8) for k in (1, 3, 5, 7) for s in (1, 2) for d in (1, 2, 4)),
        *((3, 1, 1, (4, 8), c) for c in (1, 15, 16, 17, 64, 65, 80)),
        *((7, 1, 4, image, 16) for image in ((1, 1), (1, 20), (20, 1), (3, 3), (16, 32))),
        *((5, 2, 3, image, 16) for image in ((1, 1), (2, 17), (11, 8))),
    ],
)
def test_depthwise_is_that_of_integers(kernel, size, stride, dilation, image, channels):
    rng = np.random.default_rng(0)
    x, w = _codes(rng, (2, *image, channels)), _weights(rng, (size, size, channels))
    norm = _norm(rng, channels)
    found = _depthwise(x, w, norm, stride, dilation, kernel)
    np.testing.assert_array_equal(found, _normed(_correlated(x, w, stride, dilation), norm))


def _assert_statistics(found, sums):
    sums = sums.reshape(-1, sums.shape[-1]).astype(np.float64)
    mean, variance, low, high = np.asarray(found, np.float64)
    np.testing.assert_allclose(mean, sums.mean(0), rtol=1e-5, atol=1e-5 * np.abs(sums).max())
    np.testing.assert_allclose(variance, sums.var(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal([low, high], [sums.min(0), sums.max(0)])


@pytest.mark.parametrize("channels", [1, 16, 40, 64, 96])
@pytest.mark.parametrize("pixels", [(1, 1, 1), (2, 9, 11)], ids=str)
def test_statistics_pointwise_are_those_of_integers(kernel, pixels, channels):
    rng = np.random.default_rng(0)
    x, w = _codes(rng, (3, *pixels, 14)), _weights(rng, (14, channels))
    center = rng.integers(-(2**18), 2**18, (3, channels)).astype(np.int32)
    packed = jnp.asarray(int8.pack_pointwise(np.float32(w), kernel))
    run = functools.partial(int8.pointwise_statistics, kernel=kernel)
    found = jax.vmap(run, (0, None, 0))(jnp.asarray(x), packed, jnp.asarray(center))
    for node in range(3):
        _assert_statistics(found[node], x[node].astype(np.int64) @ w - center[node])
    same = jax.vmap(run, (0, None, None))(jnp.asarray(x), packed, jnp.asarray(center[0]))
    _assert_statistics(same[2], x[2].astype(np.int64) @ w - center[0])


@pytest.mark.parametrize("channels", [1, 16, 40, 80])
@pytest.mark.parametrize(("size", "stride", "dilation"), [(3, 2, 1), (5, 1, 2), (7, 1, 4)])
def test_statistics_depthwise_are_those_of_integers(kernel, size, stride, dilation, channels):
    rng = np.random.default_rng(0)
    x, w = _codes(rng, (3, 2, 9, 13, channels)), _weights(rng, (size, size, channels))
    packed = jnp.asarray(int8.pack_depthwise(np.float32(w), kernel))
    run = functools.partial(
        int8.depthwise_statistics, w=packed, stride=stride, dilation=dilation, kernel=kernel
    )
    found = jax.vmap(run)(jnp.asarray(x))
    for node in range(3):
        _assert_statistics(found[node], _correlated(x[node], w, stride, dilation))


def _min_max_grid(values, bits):
    """Scale, zero point, inverse, highest code, lowest and highest value, in float32."""
    q_max = np.float32(2**bits - 1)
    alpha, beta = min(values.min(), np.float32(0)), max(values.max(), np.float32(0))
    scale = (beta - alpha) / q_max or np.float32(1)
    zero = np.rint(-alpha / scale)
    return np.array([scale, zero, 1 / scale, q_max, scale * -zero, scale * (q_max - zero)], "f4")


class Sums:
    """What `int8.settle` reads for some nodes."""

    def __init__(self, channels, nodes):
        rng = np.random.default_rng(channels)

        def normal(*shape):
            return rng.normal(size=shape).astype("f4")

        mean, low, high = 1e3 * np.sort(normal(3, nodes, channels), 0)[[1, 0, 2]]
        self.statistics = np.stack([mean, normal(nodes, channels) ** 2, low, high], 1)
        self.rate = rng.uniform(0.5, 2, (nodes, channels)).astype("f4")
        scale = rng.uniform(0.001, 0.01, channels).astype("f4")
        self.weights = scale, 100 * normal(channels), normal(channels), normal(channels)
        self.before = np.array([[0.02, 131], [0.03, 0], [0.01, 7]], "f4")[:nodes]

    def run(self, bits, bounds, kernel):
        def one(statistics, rate, before, bits):
            weights = list(map(jnp.asarray, self.weights))
            return int8.settle(statistics, rate, weights, before, bits, bounds, kernel)

        run = jax.jit(jax.vmap(one, (0, 0, 0, None)))
        return map(np.asarray, run(self.statistics, self.rate, self.before, bits))


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("channels", [1, 24, 100])
@pytest.mark.parametrize(("bits", "bounds"), [(8, (0.0, 6.0)), (4, (-np.inf, np.inf))])
def test_batch_norm_and_grid_are_those_of_real_numbers(kernel, bits, bounds, channels, nodes):
    given = Sums(channels, nodes)
    steps, grids, norms = given.run(jnp.int32(bits), bounds, kernel)
    scale, total, norm_scale, norm_bias = map(np.float64, given.weights)
    for node in range(nodes):
        mean, _, *extremes = given.statistics[node].astype(np.float64)
        before, zero_before = given.before[node].astype(np.float64)
        factor = norm_scale * given.rate[node]
        offset = norm_bias - factor * scale * before * mean
        values = np.clip(factor * scale * before * np.array(extremes) + offset, *bounds)
        own, zero, inverse, top, low, high = grids[node]
        exact = _min_max_grid(values.astype("f4"), bits)
        np.testing.assert_allclose(grids[node], exact, rtol=1e-5, atol=1e-5)
        rows = [factor, offset, *np.broadcast_to([[inverse], [own], [low], [high]], (4, channels))]
        np.testing.assert_allclose(steps[node], rows, rtol=1e-5, atol=1e-4)
        codes = (np.array(extremes) * norms[node, 0]) + norms[node, 1]
        corrected = (np.array(extremes) - zero_before * total) * scale * before
        expected = (corrected * factor + offset) / own + zero
        np.testing.assert_allclose(codes, expected, rtol=1e-4, atol=1e-2)
        np.testing.assert_array_equal(norms[node, 2], top)


@cpu.needs_vnni
@pytest.mark.parametrize("bounds", [(0.0, 6.0), (-np.inf, np.inf)])
def test_batch_norm_and_grid_in_c_are_those_of_xla_to_the_last_bit(bounds):
    _load()
    for channels in (1, 24, 100):
        for bits in (2, 4, 8):
            given = Sums(channels, 3)
            both = [given.run(jnp.int32(bits), bounds, kernel) for kernel in ("C++", "XLA")]
            for found, expected in zip(*both, strict=True):
                np.testing.assert_array_equal(found, expected)


def test_batch_norm_of_a_channel_that_is_not_a_number_has_no_grid(kernel):
    given = Sums(24, 3)
    given.statistics[1, 2:, 20] = np.nan
    steps, grids, norms = given.run(jnp.int32(8), (0.0, 6.0), kernel)
    assert np.isnan(grids[1, :2]).all() and np.isnan(norms[1, :2]).all()
    assert all(np.isfinite(one[[0, 2]]).all() for one in (steps, grids, norms))


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 5, 7, 24), (3, 60, 61, 16)], ids=str)
@pytest.mark.parametrize("bits", [2, 8])
def test_sums_are_on_their_own_grid(kernel, shape, bits):
    rng = np.random.default_rng(bits)
    x, y = _codes(rng, (2, *shape)), _codes(rng, (2, *shape))
    of_x = np.array([[0.02, 131], [0.03, 0]], "f4")
    of_y = np.array([[0.015, 7, 1, 1], [0.04, 255, 1, 1]], "f4")
    run = jax.vmap(functools.partial(int8.add, kernel=kernel), (0, 0, 0, 0, None))
    codes, grids = jax.jit(run)(x, y, of_x, of_y, jnp.int32(bits))
    for node in range(2):
        parts = (x, of_x), (y, of_y)
        total = sum((q[node] - of[node, 1]).astype("f4") * of[node, 0] for q, of in parts)
        own = _min_max_grid(total, bits)
        np.testing.assert_array_equal(grids[node], own)
        expected = np.clip(np.rint(total * own[2]) + own[1], 0, own[3])
        np.testing.assert_array_equal(codes[node], expected)


def test_a_sum_with_a_grid_that_is_not_a_number_has_none(kernel):
    x = _codes(np.random.default_rng(0), (1, 2, 3, 20))
    of_x, of_y = jnp.array([0.1, 3.0]), jnp.array([jnp.nan, 3.0])
    for given in ((of_x, of_y), (of_y, of_x), (of_x, jnp.array([jnp.inf, 0.0]))):
        _, grid = int8.add(jnp.asarray(x), jnp.asarray(x), *given, jnp.int32(8), kernel)
        assert np.isnan(grid[:2]).all()


@cpu.needs_vnni
def test_a_variance_keeps_its_digits_where_the_mean_is_large():
    _load()
    rng = np.random.default_rng(0)
    x = np.where(np.arange(960) < 955, 255, rng.integers(0, 256, (1, 40, 50, 960))).astype("u1")
    w = np.full((960, 16), 127)
    packed, center = (
        jnp.asarray(int8.pack_pointwise(np.float32(w), "C++")),
        jnp.zeros(16, jnp.int32),
    )
    _, variance, *_ = int8.pointwise_statistics(jnp.asarray(x), packed, center, "C++")
    expected = (x.astype(np.int64) @ w).reshape(-1, 16).var(0)
    np.testing.assert_allclose(variance, expected, rtol=1e-5)


def test_nodes_share_weights_and_have_norms_of_their_own(kernel):
    rng = np.random.default_rng(0)
    x, w, norm = _codes(rng, (3, 2, 9, 11, 24)), _weights(rng, (24, 20)), _norm(rng, 20, (3,))
    packed = jnp.asarray(int8.pack_pointwise(np.float32(w), kernel))
    run = functools.partial(int8.pointwise, kernel=kernel)
    found = jax.vmap(run, (0, None, 0))(x, packed, norm)
    for node in range(3):
        expected = _normed(x[node].astype(np.int64) @ w, norm[node])
        np.testing.assert_array_equal(found[node], expected)
    w, norm = _weights(rng, (3, 3, 24)), _norm(rng, 24, (3,))
    packed = jnp.asarray(int8.pack_depthwise(np.float32(w), kernel))
    run = jax.vmap(lambda x, norm: int8.depthwise(x, packed, norm, 1, 2, kernel))
    for node, got in enumerate(run(x, norm)):
        np.testing.assert_array_equal(got, _normed(_correlated(x[node], w, 1, 2), norm[node]))


def _any_norm(rng, channels, spread):
    """As batch norms give them: factors with all their bits, which both kernels must fuse."""
    factor = rng.uniform(0.5, 2.0, channels) * 128 / spread
    return np.stack([factor, rng.normal(128, 64, channels), np.full(channels, 255)]).astype("f4")


@cpu.needs_vnni
@pytest.mark.parametrize(("inputs", "channels"), [(16, 96), (144, 32), (384, 64), (960, 160)])
def test_both_kernels_give_the_same_codes_pointwise(inputs, channels):
    _load()
    rng = np.random.default_rng(inputs)
    x, w = _codes(rng, (2, 33, 65, inputs)), _weights(rng, (inputs, channels))
    norm = _any_norm(rng, channels, 128 * 74 * inputs**0.5)
    cpp, xla = (np.asarray(_pointwise(x, w, norm, kernel)) for kernel in ("C++", "XLA"))
    assert len(np.unique(xla)) == 256
    np.testing.assert_array_equal(cpp, xla)


@cpu.needs_vnni
@pytest.mark.parametrize(("size", "stride", "dilation"), [(3, 2, 1), (5, 1, 2), (7, 1, 4)])
def test_both_kernels_give_the_same_codes_depthwise(size, stride, dilation):
    _load()
    rng = np.random.default_rng(size)
    x, w = _codes(rng, (2, 65, 129, 96)), _weights(rng, (size, size, 96))
    norm = _any_norm(rng, 96, 128 * 74 * size)
    cpp, xla = (np.asarray(_depthwise(x, w, norm, stride, dilation, k)) for k in ("C++", "XLA"))
    assert len(np.unique(xla)) == 256
    np.testing.assert_array_equal(cpp, xla)


# Rows and columns that fill no tile, inputs and channels that fill no vector, and kernels and
# strides beyond those that the C++ knows at compile time.
# Images that several threads share: each phase has at least 32 rows of outputs.
TALL = [
    (5, 1, 1, (70, 9), (8, 20, 8)),
    (3, 2, 1, (130, 7), (8, 20, 8)),
    (3, 1, 2, (100, 5), (8, 20, 8)),
]
INVERTED = [
    *((k, s, d, (9, 13), (8, 20, 8)) for k in (3, 5, 7, 9) for s in (1, 2, 3) for d in (1, 2)),
    *((7, 1, 4, image, (8, 17, 8)) for image in ((1, 1), (1, 20), (20, 1), (3, 3), (16, 32))),
    *((5, 2, 3, image, (6, 36, 10)) for image in ((1, 1), (2, 17), (64, 31))),
    *TALL,
    *((3, 1, 1, (23, 41), channels) for channels in ((24, 72, 24), (16, 96, 24), (40, 240, 65))),
]


class Inverted:
    """Inputs of `int8.mbconv` for some nodes, as batch norms and ranges give them.

    Before its norms and grids are those of another op.
    """

    def __init__(self, size, stride, dilation, image, channels, nodes):
        rng = np.random.default_rng(size + nodes)
        inputs, hidden, outputs = channels
        self.place = int8.Place(size, stride, dilation, hidden, outputs, first=5, op=1)
        self.adds = stride == 1 and inputs == outputs
        self.x = _codes(rng, (nodes, 2, *image, inputs))
        shapes = (inputs, hidden), (size, size, hidden), (hidden, outputs)
        self.weights = [_weights(rng, shape) for shape in shapes]
        spreads = 5, inputs**0.5, size, 0.6 * hidden**0.5
        counts = self.place.first, hidden, hidden, outputs
        norms = [
            np.stack([_any_norm(rng, count, 128 * 74 * spread) for _ in range(nodes)])
            for count, spread in zip(counts, spreads, strict=True)
        ]
        norms[1][:, 2] = 63
        self.norms = np.concatenate(norms, -1)
        scale = rng.uniform(0.01, 0.1, (nodes, 2, 3 if self.adds else 1))
        grids = scale, rng.integers(0, 256, scale.shape), 1 / scale, np.full(scale.shape, 255)
        self.grids = np.stack(grids, -1).astype("f4")
        out = [-(-pixels // stride) for pixels in image]
        self.target = rng.normal(0, 3, (2, *out, outputs)).astype("f4")

    def run(self, kernel):
        """The codes and the noise of all nodes."""
        packs = int8.pack_pointwise, int8.pack_depthwise, int8.pack_pointwise
        pairs = zip(packs, self.weights, strict=True)
        weights = [jnp.asarray(pack(np.float32(w), kernel)) for pack, w in pairs]
        target = jnp.asarray(self.target)

        def one(x, norms, grids):
            shared = x, weights, norms, grids
            noise = int8.mbconv_noise(*shared, target, self.place, kernel)
            return int8.mbconv(*shared, self.place, kernel), noise

        found = jax.jit(jax.vmap(one))(self.x, self.norms, self.grids)
        return tuple(map(np.asarray, found))

    def expected(self, node):
        """The codes in NumPy; norms and sums of grids are rounded as float32 rounds them."""
        _, stride, dilation, hidden, _, first, op = self.place
        norms = np.split(self.norms[node], np.cumsum([first, hidden, hidden]), axis=1)[1:]

        def normed(sums, norm):
            fused = (sums * norm[0].astype(np.float64) + norm[1]).astype("f4")
            return np.clip(np.rint(fused), 0, norm[2]).astype(np.int64)

        x = self.x[node].astype(np.int64)
        y = normed(x @ self.weights[0], norms[0])
        y = normed(_correlated(y, self.weights[1], stride, dilation), norms[1])
        y = normed(y @ self.weights[2], norms[2])
        if not self.adds:
            return y
        of_x, of_y, own = self.grids[node, op]
        total = (x - of_x[1]).astype("f4") * of_x[0] + (y - of_y[1]).astype("f4") * of_y[0]
        return np.clip(np.rint(total * own[2]) + own[1], 0, own[3])


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize(("size", "stride", "dilation", "image", "channels"), INVERTED)
def test_inverted_residuals_are_those_of_integers(
    kernel, size, stride, dilation, image, channels, nodes
):
    given = Inverted(size, stride, dilation, image, channels, nodes)
    codes, noise = given.run(kernel)
    for node in range(nodes):
        np.testing.assert_array_equal(codes[node], given.expected(node))
        scale, zero_point = given.grids[node, given.place.op, -1, :2]
        errors = (codes[node] - np.float64(zero_point)) * scale - given.target
        np.testing.assert_allclose(noise[node], (errors**2).sum((0, 1, 2)), rtol=1e-5)


def _run_in_eight_threads(folder):
    """What a process of its own does for the test below; XLA takes the number from NPROC."""
    for number, case in enumerate([*INVERTED[::5], *TALL]):
        codes, noise = Inverted(*case, nodes=1).run("C++")
        np.savez(folder / f"{number}.npz", codes=codes, noise=noise)


@cpu.needs_vnni
def test_inverted_residuals_do_not_depend_on_the_number_of_threads(tmp_path):
    """Threads share an image row by row; codes and sums are the same to the last bit."""
    _load()
    program = (
        "import pathlib, sys; sys.path[:0] = sys.argv[2:]; import test_int8; "
        "test_int8.int8.find_kernel(); "
        "test_int8._run_in_eight_threads(pathlib.Path(sys.argv[1]))"
    )
    paths = (
        str(tmp_path),
        str(pathlib.Path(__file__).parent),
        str(pathlib.Path(cpu.__file__).parent),
    )
    subprocess.run(
        [sys.executable, "-c", program, *paths], env={**os.environ, "NPROC": "8"}, check=True
    )
    for number, case in enumerate([*INVERTED[::5], *TALL]):
        with np.load(tmp_path / f"{number}.npz") as found:
            codes, noise = Inverted(*case, nodes=1).run("C++")
            np.testing.assert_array_equal(found["codes"], codes)
            np.testing.assert_array_equal(found["noise"], noise)


@cpu.needs_vnni
@pytest.mark.parametrize("wrong", ["norms", "grids", "target"])
def test_inverted_residuals_that_do_not_fit_are_refused_in_cpp(wrong):
    _load()
    given = Inverted(3, 1, 1, (9, 13), (8, 20, 8), nodes=2)
    if wrong == "norms":
        given.norms = given.norms[..., :-1]
    elif wrong == "grids":
        given.grids = given.grids[:, :1]
    else:
        given.target = given.target[:, 1:]
    with pytest.raises(jax.errors.JaxRuntimeError, match="shapes do not fit"):
        given.run("C++")


@cpu.needs_vnni
def test_sums_in_between_may_exceed_what_a_float_holds():
    _load()
    x = np.full((1, 1, 1, 4096), 255, np.uint8)
    w = np.repeat([127, -127, 1, 0], [2047, 2047, 1, 1])[:, None]  # up to 66 million
    norm = np.array([[1.0], [-250.0], [255.0]], np.float32)
    found = _pointwise(x, w, norm, "C++")
    assert np.asarray(found).item() == 255 - 250


@cpu.needs_vnni
@pytest.mark.parametrize("mapped", [(None, None, 0), (None, 0, None), (0, 0, 0)], ids=str)
def test_other_ways_to_map_it_are_refused_in_cpp(mapped):
    """Weights for each node, or norms without inputs of their own: the tree has neither."""
    _load()
    x, w = (
        jnp.zeros((2, 1, 3, 3, 8), jnp.uint8),
        native.pack_depthwise(np.ones((3, 3, 8), np.float32)),
    )
    w, norm = jnp.stack([w, w]), jnp.ones((2, 3, 8))
    arrays = [a if axis == 0 else a[0] for a, axis in zip((x, w, norm), mapped, strict=True)]
    run = jax.vmap(lambda x, w, norm: int8.depthwise(x, w, norm, 1, 1, "C++"), mapped)
    with pytest.raises(jax.errors.JaxRuntimeError, match="shapes do not fit"):
        jax.block_until_ready(run(*arrays))


def test_where_cpp_is_missing_xla_is_used_and_the_reason_given(monkeypatch):
    monkeypatch.setattr(native, "missing", lambda may_compile: f"may compile: {may_compile}")
    assert int8.find_kernel(may_compile=False) == ("XLA", False, "may compile: False")
    assert int8.find_kernel() == ("XLA", False, "may compile: True")


def test_an_accelerator_needs_no_cpp(monkeypatch):
    monkeypatch.setattr(int8.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(native, "missing", lambda _: pytest.fail("asked for C++"))
    assert int8.find_kernel() == ("XLA", False, "")
