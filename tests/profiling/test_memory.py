"""The counted memory against known sums, and against what XLA allocates for whole steps."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import small_network
from qnas_jax.bwnas import distill
from qnas_jax.nn import init, mobilenet
from qnas_jax.nn.deeplab import DeepLabV3
from qnas_jax.profiling import memory
from qnas_jax.space import Op, Space
from qnas_jax.tasks import segmentation
from qnas_jax.train import loop, optimizers, supervised

MIB = 2**20
SIZE, BATCH = (64, 128), 4
X, W = jax.ShapeDtypeStruct((512, 512), jnp.float32), jax.ShapeDtypeStruct((512, 512), jnp.float32)


def test_elements_are_fused_and_products_are_stored():
    def chain(x, w):
        y = jnp.tanh(2 * x + 1) @ w  # the factor is stored as the product reads it
        return jnp.sum(jnp.exp(y) - y)

    assert memory.of_program(chain, X, W) == memory.Memory(2 * MIB, 2 * MIB)


def test_what_is_read_again_later_is_held():
    def plain(x, w):
        return ((x @ w) @ w) @ w

    def again(x, w):
        y = x @ w
        return (y @ w) @ w + y

    assert memory.of_program(plain, X, W).temporary == 2 * MIB
    assert memory.of_program(again, X, W).temporary == 3 * MIB


def test_a_donated_argument_is_free_after_its_last_reader():
    def step(state, x):
        total = jnp.sum(state)
        return state - 0.1 * x, total

    assert memory.of_program(step, X, W).temporary == MIB + 4
    assert memory.of_program(step, X, W, donated=(0,)).temporary <= 4


def test_a_loop_holds_one_turn_and_a_conditional_its_larger_branch():
    def loop_(x, w):
        return lax.scan(lambda c, _: ((c @ w) @ w, None), x, None, length=9)[0]

    def branch(x, w):
        return lax.cond(x[0, 0] > 0, lambda: ((x @ w) @ w) @ w, lambda: x + w)

    assert memory.of_program(loop_, X, W).temporary <= 4 * MIB
    assert 2 * MIB <= memory.of_program(branch, X, W).temporary <= 3 * MIB


def test_functions_that_are_called_are_a_part_of_the_program():
    inner = jax.jit(lambda x, w: jnp.tanh(x @ w))
    called = memory.of_program(lambda x, w: inner(inner(x, w), w), X, W)
    written_out = memory.of_program(lambda x, w: jnp.tanh(jnp.tanh(x @ w) @ w), X, W)
    assert called == written_out


def test_keys_and_small_types_have_their_bytes():
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 3))
    codes = jax.ShapeDtypeStruct((7,), jnp.uint8)
    assert memory.of_program(lambda k, c: c, keys, codes).arguments == 3 * 8 + 7


def _training():
    blocks, paths = small_network.BLOCKS, small_network.PATHS
    encoder = mobilenet.MobileNetV2(8, small_network.FIRST, blocks, paths)
    model = DeepLabV3(encoder, 16, (2, 3), 5)
    optimizer = optimizers.sgd(0.1, 10, 0.9, 0.9, 1e-4)
    loss = segmentation.task(tuple("abcde")).loss
    step = supervised.train_step(model, loss, optimizer, jax.random.key(0))
    state = jax.eval_shape(
        lambda: supervised.fresh_state(
            init.initialize(model, jax.random.key(0), (1, *SIZE, 3)), optimizer
        )
    )
    return step, (), state, (BATCH, *SIZE, 3)


def _supernet():
    searched = Space(small_network.BLOCKS[:1], (Op(3, 3), Op(5, 2)))
    optimizer = (optimizers.sgd(0.1, 10, 0.9, 0.9, 1e-4),)
    recipe = distill.Recipe(
        lambda _, x: (x, x[:, ::2, ::2]), searched, optimizer, distill.SAMPLING["fair"],
        jax.random.key(0),
    )  # fmt: skip
    state = jax.eval_shape(lambda: distill.fresh_state(searched, optimizer, jax.random.key(0)))
    return distill.train_step(recipe), ({},), state, (BATCH, *SIZE, 8)


@pytest.mark.parametrize("make", [_training, _supernet], ids=["network", "supernet"])
def test_a_step_is_counted_to_within_a_factor_of_what_xla_allocates(make):
    """XLA stores more on CPUs than what a compiler must that fuses all it can."""
    step, constants, state, shape = make()
    images = jax.ShapeDtypeStruct((1, *shape), jnp.uint8 if shape[-1] == 3 else jnp.float32)
    labels = jax.ShapeDtypeStruct((1, BATCH, *SIZE), jnp.uint8)
    given = constants, state, images, labels, jax.ShapeDtypeStruct((1,), jnp.int32)
    program = loop.program(step)
    counted = memory.of_program(program, *given, donated=(1,))
    found = program.lower(*given).compile().memory_analysis()
    allocated = found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    # XLA leaves out what no operation reads, e.g. the labels of a supernet.
    assert found.argument_size_in_bytes <= counted.arguments < 1.1 * found.argument_size_in_bytes
    assert 1 / memory.FACTOR < counted.temporary / allocated < 1.0
