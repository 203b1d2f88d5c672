import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cpu
import reference
from qnas_jax import metrics, space
from qnas_jax.bwnas.lut import evaluate, layer_scales, mbconv_int8, prefix_tree
from qnas_jax.kernels import int8
from qnas_jax.nn import init, mbconv_float, supernet
from qnas_jax.nn.mbconv import BlockPath
from qnas_jax.quant import affine, calibrate

OPS = (space.Op(3, 2), space.Op(5, 3), space.Op(7, 2))
NARROW = space.Block(in_channels=8, channels=16, stride=2, dilation=1, depth=2)
DILATED = space.Block(in_channels=16, channels=16, stride=1, dilation=2, depth=3)
FIRST_DILATED = space.Block(16, 16, stride=1, dilation=4, depth=2, dilate="first")


KERNELS = [pytest.param("C++", marks=cpu.needs_vnni), "XLA"]


@functools.cache
def _fast():
    """The kernel that a run on this machine would use."""
    return int8.find_kernel().kernel


def _tree(params, block, bits, ops=OPS, **how):
    return prefix_tree.build(params, block, ops, [[bits]] * block.depth, calibrate.min_max, **how)


def _scores(built, calibration, x, target, nodes_per_pass=1):
    found = prefix_tree.calibrate(built, calibration, nodes_per_pass)
    noise = prefix_tree.noise(
        built, found, x, target, metrics.channel_variance(target), nodes_per_pass
    )
    return noise / (target.size // target.shape[-1])


def _data(block, size, images=4):
    calibration, _ = reference.random_maps(block, images, size, seed=1)
    return calibration, *reference.random_maps(block, images, size, seed=2)


def _against_module(block, ops, bits, rows, size):
    """Exact sums may tip a value to the next code, and with it all pixels that have that sum.

    In calibration such a value moves a range, and so the grid of everything after it: the fewer
    bits, the farther.
    """
    params, data = reference.random_block(block, ops), _data(block, size, images=8)
    choices = [reference.choices_of_row(block, ops, row, *bits) for row in rows]
    alone = np.array([reference.path_nsr(params, block, one, *data) for one in choices])
    tipped = (5e-3, 1e-3) if min(bits) == 8 else (0.5, 5e-3)
    for kernel, most, usual in ((None, 1e-5, 1e-6), (_fast(), *tipped)):
        scores = _scores(_tree(params, block, bits, ops, kernel=kernel), *data)[rows]
        away = np.abs(scores / alone - 1)
        print(f"kernel={kernel}: largest relative difference over {len(rows)} rows: "
              f"{away.max():.2g}; {np.sum(away > 1e-4)} above 1e-4")  # fmt: skip
        assert away.max() < most and np.median(away) < usual


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(NARROW, id="strided"),
        pytest.param(DILATED, id="dilated"),
        pytest.param(FIRST_DILATED, id="first", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("bits", [(8, 8), (4, 6)], ids=["w8a8", "w4a6"])
def test_a_row_is_its_path_evaluated_alone_through_the_module(block, bits):
    rows = np.random.default_rng(0).choice(len(OPS) ** block.depth, 3, replace=False)
    _against_module(block, OPS, bits, rows, (23, 41))


@pytest.mark.parametrize("bits", [(8, 8), (4, 6)], ids=["w8a8", "w4a6"])
def test_a_row_with_one_scale_a_layer_is_its_path_through_the_module(bits):
    block, data = NARROW, _data(NARROW, (23, 41), images=8)
    params = layer_scales.with_ranges(reference.random_block(block, OPS), block, OPS, data[0])
    scores = _scores(_tree(params, block, bits), *data)
    per_channel = _scores(_tree(reference.random_block(block, OPS), block, bits), *data)
    for row in (1, 5):
        choices = reference.choices_of_row(block, OPS, row, *bits)
        alone = reference.path_nsr(params, block, choices, *data)
        assert scores[row] == pytest.approx(alone, rel=1e-5)
    assert np.all(scores != per_channel)
    exact = _scores(_tree(params, block, bits, kernel=_fast()), *data)
    np.testing.assert_allclose(exact, scores, rtol=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [(8, 8), (6, 6), (4, 4)], ids=["8", "6", "4"])
@pytest.mark.parametrize("number", range(6))
def test_fifty_rows_of_each_block_of_table_one(number, bits):
    ops = tuple(space.Op(k, e) for k in (3, 5, 7) for e in (3, 6))
    blocks = space.mobilenet_v2_blocks(0.5, (1, 2, 2, 1, 1, 1, 1), (1, 1, 1, 2, 2, 4, 4))[1:]
    block = blocks[number]
    total = len(ops) ** block.depth
    rows = np.random.default_rng(number).choice(total, min(50, total), replace=False)
    _against_module(block, ops, bits, rows, (24, 40))


def test_a_bitwidth_for_each_layer():
    bits = ((8, 8), (4, 6))
    params, data = reference.random_block(NARROW, OPS), _data(NARROW, (23, 41))
    built = prefix_tree.build(params, NARROW, OPS, [bits[:1], bits], calibrate.min_max)
    scores = _scores(built, *data)
    assert len(scores) == 3 * 6
    for row in (1, 4, 15):  # digits: first op, then bitwidth and op of the second
        first, second = OPS[row // 6], OPS[row % 3]
        choices = (space.Choice(first, 8, 8), space.Choice(second, *bits[row % 6 // 3]))
        alone = reference.path_nsr(params, NARROW, choices, *data)
        assert scores[row] == pytest.approx(alone, rel=1e-4)


@pytest.mark.slow
def test_scores_do_not_depend_on_how_many_nodes_run_at_once():
    data = _data(DILATED, (6, 7), images=2)
    built = _tree(reference.random_block(DILATED, OPS), DILATED, (8, 8))
    one = _scores(built, *data)
    for nodes in (2, 9):
        np.testing.assert_allclose(_scores(built, *data, nodes), one, rtol=1e-5)


def test_chunks_of_images_add_up_to_all_images():
    calibration, x, target = _data(NARROW, (8, 8))
    built = _tree(reference.random_block(NARROW, OPS), NARROW, (8, 8))
    found, variance = prefix_tree.calibrate(built, calibration), metrics.channel_variance(target)
    whole = prefix_tree.noise(built, found, x, target, variance)
    halves = [
        prefix_tree.noise(built, found, x[i : i + 2], target[i : i + 2], variance) for i in (0, 2)
    ]
    np.testing.assert_allclose(sum(halves), whole, rtol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bits", [(8, 8), (4, 4)], ids=["8", "4"])
def test_int8_gives_what_float32_gives(bits, kernel):
    """Except for values that lie half-way between two codes, a few in 100,000."""
    calibration, x, target = _data(DILATED, (23, 41), images=8)
    params, variance = reference.random_block(DILATED, OPS), metrics.channel_variance(target)
    trees = [_tree(params, DILATED, bits, kernel=choice) for choice in (None, kernel)]
    found = prefix_tree.calibrate(trees[0], calibration)
    exact, coded = (prefix_tree.noise(one, found, x, target, variance) for one in trees)
    np.testing.assert_allclose(coded, exact, rtol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bits", [(8, 8), (4, 4)], ids=["8", "4"])
@pytest.mark.parametrize("block", [NARROW, DILATED], ids=["strided", "added"])
def test_int8_finds_the_statistics_and_ranges_of_float32(block, bits, kernel):
    """In the first layer, where both read the same codes."""
    assert kernel in ("XLA", _fast())
    params, (x, *_) = reference.random_block(block, OPS), _data(block, (23, 41))
    params["layer0"][str(OPS[0])]["expand"]["norm"]["scale"] *= -1  # the extremes change places
    exact, found = (
        prefix_tree.calibrate(_tree(params, block, bits, kernel=choice), x)
        for choice in (None, kernel)
    )
    np.testing.assert_array_equal(found.input_range, exact.input_range)
    real, coded = exact.nodes[0][0], found.nodes[0][0]
    # Statistics are not rounded to codes; a code that is tipped moves them a little.
    np.testing.assert_allclose(coded, real, rtol=1e-3, atol=1e-3 * np.abs(real).max())


@pytest.mark.parametrize("kernel", KERNELS)
def test_other_ranges_are_found_in_float32(kernel):
    assert kernel in ("XLA", _fast())
    params, (x, *_) = reference.random_block(NARROW, OPS), _data(NARROW, (8, 8))
    bits = [[(8, 8)]] * NARROW.depth
    exact, found = (
        prefix_tree.calibrate(
            prefix_tree.build(params, NARROW, OPS, bits, calibrate.percentile, kernel=choice), x
        )
        for choice in (None, kernel)
    )
    for real, coded in zip(exact.nodes, found.nodes, strict=True):
        np.testing.assert_array_equal(coded[0], real[0])


@cpu.needs_vnni
@pytest.mark.parametrize("bits", [(8, 8), (6, 6), (4, 4)], ids=["8", "6", "4"])
def test_both_kernels_give_the_same_codes_through_a_block(bits):
    cpu.compiler()
    assert _fast() == "C++"
    params, (x, *_) = reference.random_block(DILATED, OPS), _data(DILATED, (23, 41))
    codes, found = [], prefix_tree.calibrate(_tree(params, DILATED, bits), x)
    for kernel in ("C++", "XLA"):
        built = _tree(params, DILATED, bits, kernel=kernel)
        xs = evaluate.int8_input(x, jnp.int32(8), found.input_range)
        for layer, spec in enumerate(built.layers[:2]):
            packed = found.nodes[layer][0]
            xs = evaluate.run_layer_int8(kernel, spec, built.codes[layer][0], xs, packed)
        codes.append(np.asarray(xs.codes))
    assert codes[0].shape[0] == len(OPS) ** 2
    np.testing.assert_array_equal(*codes)


def test_sums_of_two_grids_are_rounded_alike_in_both_arithmetics():
    """With few codes such sums lie half-way between two of the next grid by the thousand."""
    rng = np.random.default_rng(0)
    range_, bits = jnp.array([[-3.0] * 4, [3.0] * 4]), jnp.int32(4)
    grid = mbconv_float.grid_of(range_, bits)
    half = grid._replace(inverse=grid.inverse / 2, scale=grid.scale * 2, low=2 * grid.low)
    half = half._replace(high=2 * grid.high)
    x, y = jnp.asarray(rng.uniform(-3, 3, (2, 1, 9, 9, 4)), jnp.float32)

    @jax.jit
    def both(x, y):
        real = mbconv_float.on_grid(
            mbconv_float.on_grid(x, grid) + mbconv_float.on_grid(y, grid), half
        )
        total = mbconv_int8.quantized(x, grid).real() + mbconv_int8.quantized(y, grid).real()
        return real, mbconv_int8.quantized(total, half).real()

    real, coded = both(x, y)
    assert len(np.unique(real)) > 8
    np.testing.assert_array_equal(coded, real)


@pytest.mark.parametrize("kernel", KERNELS)
def test_codes_are_held_as_uint8_between_layers(kernel):
    assert kernel in ("XLA", _fast())
    built = _tree(reference.random_block(NARROW, OPS), NARROW, (8, 8), kernel=kernel)
    x = _data(NARROW, (8, 8))[0]
    found = prefix_tree.calibrate(built, x)
    xs = evaluate.int8_input(x, jnp.int32(8), jnp.array([-2.0, 3.0]))
    packed = found.nodes[0][0]
    ys = evaluate.run_layer_int8(kernel, built.layers[0], built.codes[0][0], xs, packed)
    assert xs.codes.dtype == ys.codes.dtype == jnp.uint8
    assert int(ys.codes.max()) > 200  # in use up to the last bit
    real = np.asarray(jax.vmap(mbconv_int8.QTensor.real)(ys))
    assert real.min() < 0 < real.max()


def test_a_range_for_each_channel_is_no_noisier_where_channels_differ():
    """Against a target that the unquantized path gives exactly, only quantization is noise."""
    block = space.Block(in_channels=8, channels=16, stride=1, dilation=1, depth=1)
    params, (calibration, x, _) = reference.random_block(block, OPS), _data(block, (8, 8))
    scale = np.geomspace(0.02, 2, 16).astype(np.float32)
    for op in OPS:
        params["layer0"][str(op)]["project"]["norm"]["scale"] = jnp.asarray(scale)
    module = BlockPath(block, OPS[:1])
    fresh = init.initialize(module, jax.random.key(0), (1, 4, 4, 8))
    variables = {**fresh, "params": supernet.path_params(params, OPS[:1])}
    variables.pop("quant")
    _, stats = module.apply(variables, calibration, mutable=["batch_stats"])
    target = module.apply({**variables, **stats}, x)
    tensor, channel = (
        _scores(_tree(params, block, (8, 4), per_channel=choice), calibration, x, target)[0]
        for choice in (False, True)
    )
    assert 0 < channel < 0.5 * tensor


def test_the_saved_calibration_is_read_back(tmp_path):
    calibration, *_ = _data(DILATED, (6, 7), images=2)
    built = _tree(reference.random_block(DILATED, OPS), DILATED, (8, 8))
    found = prefix_tree.calibrate(built, calibration)
    prefix_tree.calibrate(built, calibration, folder=tmp_path)
    again = prefix_tree.load_calibration(tmp_path, built)
    np.testing.assert_array_equal(found.input_range, again.input_range)
    for layer, layers in enumerate(found.nodes):
        for choice, nodes in enumerate(layers):
            rows = np.arange(len(nodes))[::-1]
            np.testing.assert_array_equal(again.nodes[layer][choice][rows], nodes[rows])


def test_weights_are_quantized_once_for_all_bitwidths_of_activations():
    params, bits = reference.random_block(NARROW, OPS), [(4, 4), (4, 8), (8, 4)]
    built = prefix_tree.build(params, NARROW, OPS, [bits, bits], calibrate.min_max, kernel="XLA")
    assert built.weights is None, "nothing runs in float32"
    real = prefix_tree.build(params, NARROW, OPS, [bits, bits], calibrate.min_max)
    for weights in (real.weights, built.codes):
        for four, also_four, eight in weights:
            assert four is also_four and four is not eight


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_have_the_same_codes_in_numpy(bits):
    rng = np.random.default_rng(bits)
    w = rng.normal(size=(3, 3, 5, 40)).astype(np.float32)
    w[..., 0], w[..., 1], w[0, 0, 0, 2], w[0, 0, 0, 3] = 0, 1e-39, np.nan, np.inf
    for absmax in (None, rng.uniform(0.1, 2, 40).astype(np.float32)):
        given = None if absmax is None else jnp.asarray(absmax)
        expected = affine.weight_codes(jnp.asarray(w), jnp.int32(bits), absmax=given)
        with np.errstate(invalid="ignore"):
            both = mbconv_int8.weight_codes(w, bits, absmax)
        for found, other in zip(both, expected, strict=True):
            np.testing.assert_array_equal(found, other)


def test_all_bitwidths_and_mixtures_share_the_programs():
    data = _data(NARROW, (5, 11), images=2)
    params = reference.random_block(NARROW, OPS)
    before = evaluate.compilations()
    for kernel, programs in ((None, 4), ("XLA", 4)):  # to calibrate and to score two layers
        _scores(_tree(params, NARROW, (8, 8), kernel=kernel), *data)
        before += programs
        assert evaluate.compilations() == before
        for bits in ((2, 7), (4, 4), (6, 3)):
            _scores(_tree(params, NARROW, bits, kernel=kernel), *data)
        mixed = [[(4, 4)], [(4, 4), (8, 8)]]
        built = prefix_tree.build(params, NARROW, OPS, mixed, calibrate.min_max, kernel=kernel)
        _scores(built, *data)
        assert evaluate.compilations() == before


def _cast(tree_, dtype):
    def cast(leaf):
        return (
            jnp.asarray(leaf, dtype) if np.issubdtype(np.asarray(leaf).dtype, np.floating) else leaf
        )

    return jax.tree.map(cast, tree_)


@pytest.mark.slow
def test_float32_is_as_far_from_float64_as_int8_is(monkeypatch):
    """Rows differ where a sum lies half-way between two codes; rounded sums fall to any side."""
    ops = tuple(space.Op(k, e) for k in (3, 5, 7) for e in (3, 6))
    block = space.mobilenet_v2_blocks(0.5, (1, 2, 2, 1, 1, 1, 1), (1, 1, 1, 2, 2, 4, 4))[2]
    params, (calibration, x, target) = (
        reference.random_block(block, ops),
        _data(block, (24, 40), images=8),
    )
    in_int8 = _tree(params, block, (6, 6), ops, kernel=_fast())
    in_float32 = _tree(params, block, (6, 6), ops)
    found = prefix_tree.calibrate(in_float32, calibration)
    variance = metrics.channel_variance(target)
    scores = [prefix_tree.noise(one, found, x, target, variance) for one in (in_int8, in_float32)]
    # The same codes as the others begin with.
    start = evaluate.float_input(x, jnp.int32(8), found.input_range)
    with jax.enable_x64(True):
        monkeypatch.setattr(evaluate, "float_input", lambda *_: _cast(start, jnp.float64))
        in_float64 = in_float32._replace(weights=_cast(in_float32.weights, jnp.float64))
        nodes = [[np.asarray(node, np.float64) for node in layer] for layer in found.nodes]
        arrays = _cast((x, target, variance), jnp.float64)
        exact = prefix_tree.noise(in_float64, found._replace(nodes=nodes), *arrays)
    away = [int(np.sum(np.abs(one / exact - 1) > 1e-4)) for one in scores]
    print(f"of {len(exact)} rows above 1e-4: {away[0]} in int8, {away[1]} in float32")
    assert 0 < away[1] and away[0] < 2 * away[1]
