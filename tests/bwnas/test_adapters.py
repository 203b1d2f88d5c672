"""Adapters against NumPy's decomposition, and folding against the wide teacher."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax import space
from qnas_jax.bwnas import adapters
from qnas_jax.errors import InputError
from qnas_jax.nn import init, mobilenet
from qnas_jax.nn.classifier import Classifier
from qnas_jax.nn.deeplab import DeepLabV3
from qnas_jax.train import supervised
from small_network import BLOCKS, PATHS, SHAPE, lived

FIRST = space.Block(16, 8, 1, 1, 1)  # without a sum at its end
NARROW = (6, 5, 9)  # channels at the boundaries; the teacher has 8, 8, 16


def _heads(encoder):
    return {
        "segmentation": DeepLabV3(encoder, 12, (2, 3), 5),
        "classification": Classifier(encoder, 24, 7),
    }


TEACHERS = _heads(mobilenet.MobileNetV2(16, FIRST, BLOCKS, PATHS))


@pytest.fixture(scope="module", params=sorted(TEACHERS))
def case(request):
    """A teacher, its variables with adapters, images, and its features in float64."""
    teacher = TEACHERS[request.param]
    fresh = init.initialize(teacher, jax.random.key(0), (1, *SHAPE))
    variables = lived({name: fresh[name] for name in ("params", "batch_stats")})
    images = np.random.default_rng(0).integers(0, 256, (6, *SHAPE)).astype(np.uint8)
    found, kept = adapters.fit(teacher, variables, [images[:4], images[4:]], NARROW, seed=3)
    maps = jax.jit(supervised.features(teacher))(variables, images)
    with_adapters = {**variables, supervised.ADAPTERS: found}
    return request.param, teacher, with_adapters, images, [np.float64(m) for m in maps], kept


def test_projections_keep_as_much_variance_as_the_best_of_their_rank(case):
    *_, variables, _, maps, kept = case
    for i, (x, width) in enumerate(zip(maps, NARROW, strict=True)):
        projection = variables[supervised.ADAPTERS][f"boundary{i}"].astype(np.float64)
        np.testing.assert_allclose(projection.T @ projection, np.eye(width), atol=1e-5)
        centred = x.reshape(-1, x.shape[-1]) - x.mean((0, 1, 2))
        singular = np.linalg.svd(centred, compute_uv=False) ** 2
        best = singular[:width].sum() / singular.sum()
        found = ((centred @ projection) ** 2).sum() / singular.sum()
        assert found == pytest.approx(best, rel=1e-4)
        assert kept[i] == pytest.approx(best, rel=1e-4)


def test_features_are_projected(case):
    _, teacher, variables, images, maps, _ = case
    found = jax.jit(supervised.features(teacher))(variables, images)
    for i, (x, y) in enumerate(zip(maps, found, strict=True)):
        projection = variables[supervised.ADAPTERS][f"boundary{i}"]
        np.testing.assert_allclose(y, x @ projection, rtol=1e-3, atol=1e-4)


def test_a_subnet_has_the_projected_input_of_its_blocks_and_the_teachers_head(case):
    kind, teacher, variables, images, maps, _ = case
    folded = adapters.folded(teacher, variables, SHAPE)
    assert supervised.ADAPTERS not in folded
    first = dataclasses.replace(FIRST, channels=NARROW[0])
    blocks = (
        space.Block(NARROW[0], NARROW[1], 2, 1, 1),
        space.Block(NARROW[1], NARROW[2], 1, 2, 1),
    )
    paths = ((space.Op(3, 2),), (space.Op(3, 2),))
    subnet = _heads(mobilenet.MobileNetV2(16, first, blocks, paths))[kind]
    fresh = init.initialize(subnet, jax.random.key(1), (1, *SHAPE))
    merged = {
        name: {
            **folded[name],
            "encoder": {**folded[name]["encoder"], **_blocks(fresh[name]["encoder"])},
        }
        for name in ("params", "batch_stats")
    }
    shapes = jax.tree.map(jnp.shape, {name: fresh[name] for name in merged})
    assert jax.tree.map(jnp.shape, merged) == shapes
    reads = jax.jit(supervised.features(subnet))(merged, images)[0]
    first_projection = variables[supervised.ADAPTERS]["boundary0"]
    np.testing.assert_allclose(reads, maps[0] @ first_projection, rtol=1e-3, atol=1e-4)

    last = variables[supervised.ADAPTERS]["boundary2"]
    narrow = np.random.default_rng(1).normal(size=(*maps[2].shape[:3], NARROW[2]))
    wide = jnp.asarray(narrow @ last.T, jnp.float32)
    given = {name: variables[name] for name in merged}
    exact = _head(teacher, given, wide)
    np.testing.assert_allclose(_head(subnet, merged, narrow), exact, rtol=1e-3, atol=1e-3)


def _blocks(encoder):
    return {name: leaves for name, leaves in encoder.items() if name in ("block1", "block2")}


def _head(network, variables, last):
    """The logits of a network whose encoder gives these last features."""
    last = jnp.asarray(last, jnp.float32)

    class Given(mobilenet.MobileNetV2):
        def __call__(self, images, train=False):
            return (last,)

    fields = ("stem", "first", "blocks", "paths", "padding", "stem_stride")
    encoder = Given(**{name: getattr(network.encoder, name) for name in fields})
    images = jnp.zeros((len(last), *SHAPE))
    return jax.jit(network.clone(encoder=encoder).apply)(variables, images)


def test_an_equally_wide_teacher_keeps_its_variables():
    teacher = TEACHERS["segmentation"]
    variables = {"params": {}, "batch_stats": {}}
    assert adapters.folded(teacher, variables, SHAPE) is variables


def test_a_teacher_whose_first_block_reads_a_sum_is_refused():
    encoder = mobilenet.MobileNetV2(8, space.Block(8, 8, 1, 1, 1), BLOCKS, PATHS)
    with pytest.raises(InputError, match=r"network\.teacher_width: .* reads a sum"):
        adapters.check(_heads(encoder)["segmentation"], SHAPE)
    adapters.check(TEACHERS["segmentation"], SHAPE)
