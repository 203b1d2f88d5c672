import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import cluster

from qnas_jax.quant import clusters

DRAWS = ("normal", "uniform", "laplace")
shared = jax.jit(clusters.kmeans)


def weights(draw, shape, seed=0):
    return getattr(np.random.default_rng(seed), draw)(size=shape).astype(np.float32)


def lloyd(w, bits, iterations):
    """Centres by Lloyd's algorithm, in float64 and with loops."""
    values, count = np.sort(np.float64(w).ravel()), 2**bits
    # As dense as the cube root of the density, no place twice.
    mass = np.concatenate([[0], np.cumsum(np.diff(values) ** (2 / 3))])
    places = []
    for i in range(count):
        place = int(np.sum(mass < (i + 0.5) / count * mass[-1]))
        place = max(place, places[-1] + 1) if places else place
        places.append(min(place, values.size - count + i))
    found = values[places]
    for _ in range(iterations):
        nearest = np.abs(values[:, None] - found).argmin(1)
        for i in range(count):
            if (nearest == i).any():
                found[i] = values[nearest == i].mean()
        found.sort()
    return found


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])
def test_centres_are_those_of_a_plain_loop(draw, bits):
    w = weights(draw, (5, 6, 20), bits)
    for iterations in (0, 1, 50):
        found = np.asarray(clusters.centres(jnp.asarray(w), jnp.int32(bits), iterations))
        expected = lloyd(w, bits, iterations)
        np.testing.assert_allclose(found[: 2**bits], expected, rtol=1e-5, atol=1e-5)
        assert (found[2**bits :] == np.inf).all()
        assert (np.diff(found[: 2**bits]) >= 0).all()


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_each_weight_gets_the_nearest_centre(bits):
    w = weights("normal", (7, 11, 3))
    found = clusters.centres(jnp.asarray(w), jnp.int32(bits))
    used = np.asarray(found)[: 2**bits]
    codes = clusters.assign(jnp.asarray(10 * w), found)  # also far outside of the centres
    distances = np.abs(10 * w[..., None] - used)
    found = np.take_along_axis(distances, np.asarray(codes)[..., None], -1)[..., 0]
    np.testing.assert_array_equal(found, distances.min(-1))  # some centres are twice there


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize(("bits", "most"), [(1, 1.01), (2, 1.05), (3, 1.2), (4, 1.2), (6, 1.25)])
def test_the_error_is_close_to_that_of_scikit_learn(draw, bits, most):
    for seed in range(3):
        w = weights(draw, (3, 3, 16, 8), seed)
        peer = cluster.KMeans(2**bits, n_init=4, random_state=seed).fit(w.reshape(-1, 1))
        error = np.sum((np.asarray(shared(jnp.asarray(w), jnp.int32(bits))) - w) ** 2)
        assert error <= most * peer.inertia_


def test_one_program_serves_all_bitwidths_and_more_bits_err_less():
    w, program = (
        jnp.asarray(weights("laplace", (3, 3, 8, 12))),
        jax.jit(functools.partial(clusters.kmeans)),
    )
    errors = []
    for bits in range(1, 9):
        found = np.asarray(program(w, jnp.int32(bits)))
        assert len(np.unique(found)) == 2**bits
        errors.append(np.mean((found - w) ** 2))
    assert program._cache_size() == 1
    assert (np.diff(errors) < 0).all()


def test_vmap_over_bitwidths_equals_a_loop():
    w, bits = jnp.asarray(weights("normal", (6, 50))), jnp.arange(1, 9)
    mapped = jax.vmap(clusters.kmeans, (None, 0))(w, bits)
    for one, found in zip(bits, mapped, strict=True):
        np.testing.assert_allclose(found, shared(w, one), rtol=1e-6)


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 3, 1, 28), (256,)], ids=str)
def test_no_more_weights_than_centres_are_unchanged(shape):
    w = weights("normal", shape)
    np.testing.assert_allclose(shared(jnp.asarray(w), jnp.int32(8)), w, rtol=1e-6)


@pytest.mark.parametrize("constant", [0.0, -2.5, 0.1])
def test_a_constant_stays(constant):
    w = jnp.full((3, 3, 4, 2), constant)
    for bits in (1, 3, 8):
        np.testing.assert_allclose(shared(w, jnp.int32(bits)), w, rtol=1e-6)


def test_as_many_values_as_centres_are_found_whatever_their_counts():
    values = np.float32([-3, -0.5, 0.25, 7])
    w = np.random.default_rng(0).permutation(np.repeat(values, [25, 30, 20, 25]))
    np.testing.assert_allclose(shared(jnp.asarray(w), jnp.int32(2)), w, rtol=1e-6)


def masks(codes):
    return [np.asarray(codes) == code for code in np.unique(codes)]


def test_shared_weights_are_the_means_of_their_clusters():
    w = weights("normal", (4, 5, 6))
    codes = clusters.assign(jnp.asarray(w), clusters.centres(jnp.asarray(w), jnp.int32(3)))
    trained = w + weights("uniform", w.shape)  # the clusters stay
    found, expected = clusters.share(jnp.asarray(trained), codes), np.empty(w.shape)
    for one in masks(codes):
        expected[one] = np.float64(trained)[one].mean()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_gradient_is_the_mean_of_its_cluster():
    w, grads = weights("normal", (4, 5, 6)), weights("laplace", (4, 5, 6), 1)
    codes = clusters.assign(jnp.asarray(w), clusters.centres(jnp.asarray(w), jnp.int32(3)))
    (found,) = jax.vjp(lambda x: clusters.share(x, codes), jnp.asarray(w))[1](jnp.asarray(grads))
    expected = np.empty(w.shape)
    for one in masks(codes):
        expected[one] = np.float64(grads)[one].mean()
    assert len(masks(codes)) == 8
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_sgd_moves_each_centre_by_the_mean_gradient_of_its_weights():
    w, to = jnp.asarray(weights("normal", (9, 20))), jnp.asarray(weights("uniform", (9, 20)))
    codes = clusters.assign(w, clusters.centres(w, jnp.int32(2)))

    def loss(w):
        return jnp.sum((clusters.share(w, codes) - to) ** 2 * (1 + to))

    moved, centre = np.float64(w), np.float64(clusters.share(w, codes))
    for _ in range(3):
        moved = moved - 0.05 * np.float64(jax.grad(loss)(jnp.float32(moved)))
        grads = 2 * (centre - np.float64(to)) * (1 + np.float64(to))
        for one in masks(codes):
            centre[one] -= 0.05 * grads[one].mean()
    assert np.abs(centre - np.asarray(clusters.share(w, codes))).max() > 0.05
    np.testing.assert_allclose(clusters.share(jnp.float32(moved), codes), centre, rtol=1e-4)
