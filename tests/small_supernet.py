"""Two blocks of two ops, features to train them on, and the steps that do."""

import jax
import jax.numpy as jnp
import numpy as np

import reference
from qnas_jax import space
from qnas_jax.bwnas import distill
from qnas_jax.train import optimizers

OPS = (space.Op(3, 2), space.Op(5, 2))
BLOCKS = (space.Block(4, 6, 2, 1, 2), space.Block(6, 6, 1, 2, 1))
SPACE = space.Space(BLOCKS, OPS)
KEY = jax.random.key(5)
DECAY = 0.01


def features(seed=0):
    """What a teacher gives at the boundaries of the blocks."""
    rng = np.random.default_rng(seed)
    shapes = (2, 5, 7, 4), (2, 3, 4, 6), (2, 3, 4, 6)
    return tuple(jnp.asarray(rng.normal(0.5, 1, shape), jnp.float32) for shape in shapes)


def sgd(weight_decay):
    return tuple(optimizers.sgd(lr, 50, 0.9, 0.9, weight_decay) for lr in (0.1, 0.05))


def _step(sampling, weight_decay):
    """The step, with feature maps in the place of images."""
    recipe = distill.Recipe(
        lambda teacher, images: images,
        SPACE,
        sgd(weight_decay),
        distill.SAMPLING[sampling],
        KEY,
    )
    step = distill.train_step(recipe)
    return lambda state, maps, number: step({}, state, maps, None, jnp.int32(number))


# Without decay, which would change every op even if none were trained.
fair = _step("fair", weight_decay=0.0)
# With decay and momentum, which must not change what was not sampled.
uniform = _step("uniform", weight_decay=DECAY)


def random_state():
    """What they begin with."""
    fresh = distill.fresh_state(SPACE, sgd(0.0), jax.random.key(0))
    params = reference.random_block(BLOCKS[0], OPS)
    return (fresh[0]._replace(params=params), fresh[1])


def named(tree):
    """Leaves by their path, the state of an optimizer included."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def of_op(block_state, layer, op):
    """Weights and momentum of an op."""
    place = f"['layer{layer}']['{op}']"
    found = {name: leaf for name, leaf in named(block_state).items() if place in name}
    assert len(found) == 2 * 9, "three kernels, scales and biases, each with its momentum"
    return found


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a)
