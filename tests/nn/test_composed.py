"""A subnet whose ops are data against the network of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import small_oneshot
from qnas_jax.nn import composed, policy
from qnas_jax.nn.trace import trace
from qnas_jax.nn.units import pixels
from qnas_jax.quant.calibrate import RANGES
from small_oneshot import NETWORK, SPACE, quickly_compiled, random_images, subnet_of

__all__ = ["quickly_compiled"]

PATHS = [(0, 0, 0), (1, 0, 1), (0, 1, 1)]
MIXED = [(8, 8), (4, 6), (3, 8)]


@pytest.fixture(scope="module")
def weights():
    params, teacher = small_oneshot.drawn()
    rest = {**teacher, "params": params["rest"]}
    return params, composed.Weights(rest, params["blocks"])


@pytest.fixture(scope="module")
def program():
    """Calibrates and runs a subnet; counts its traces."""
    traces = []

    @jax.jit
    def run(weights, chosen, calibration_images, images):
        traces.append(1)
        find_range = RANGES["min_max"]
        found = composed.calibrate(NETWORK, weights, chosen, find_range, calibration_images)
        return composed.run(NETWORK, weights, chosen, found, find_range, images)

    run.traces = traces
    return run


@pytest.mark.parametrize(
    ("path", "bits"),
    [((0, 0, 0), (8, 8)), ((1, 0, 1), (4, 4)), ((0, 1, 1), MIXED)],
)
def test_a_quantized_subnet_is_its_own_network(weights, program, path, bits):
    params, shared = weights
    subnet = subnet_of(path, bits)
    calibration, images = random_images(6), random_images(3, seed=1)
    chosen = jax.tree.map(lambda x: x[0], composed.choices_of(SPACE, [subnet]))
    found = program(shared, chosen, calibration, images)

    model = small_oneshot.student(subnet)
    own = small_oneshot.own_variables(params, subnet)
    own["quant"] = policy.with_bits(own["quant"], trace(model, (10, 10, 3)), subnet)

    @jax.jit
    def run(own, calibration, images):
        _, changed = model.apply(own, pixels(calibration), mutable=["batch_stats", "quant"])
        read = {**own, **changed}
        return model.apply(read, pixels(images)), model.apply(
            read, pixels(images), method="features"
        )

    expected, features = run(own, calibration, images)
    np.testing.assert_allclose(found.logits, expected, rtol=1e-4, atol=1e-4)
    for y, wanted in zip(found.features, features[1:], strict=True):
        np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)


def test_one_trace_serves_all_subnets_and_bitwidths(weights, program):
    for path in PATHS:
        chosen = jax.tree.map(lambda x: x[0], composed.choices_of(SPACE, [subnet_of(path, MIXED)]))
        program(weights[1], chosen, random_images(6), random_images(3))
    assert len(program.traces) == 1


@jax.jit
@jax.value_and_grad
def _shared_loss(params, batch_stats, path, images):
    logits = composed.train_logits(NETWORK, params, batch_stats, path, images, jax.random.key(0))
    return jnp.sum(jnp.sin(logits))


@pytest.mark.parametrize("path", PATHS[1:])
def test_training_computes_the_logits_and_gradients_of_the_own_network(weights, path):
    params, _ = weights
    images = random_images(5)
    subnet = subnet_of(path)
    model, own = small_oneshot.student(subnet), small_oneshot.own_variables(params, subnet)
    stats = {"batch_stats": own["batch_stats"]}

    @jax.jit
    @jax.value_and_grad
    def own_loss(params):
        logits, _ = model.apply(
            {"params": params, **stats}, pixels(images), train=True, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.sin(logits))

    value, gradients = _shared_loss(params, stats["batch_stats"], jnp.array(path), images)
    expected, wanted = own_loss(own["params"])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for number, block in enumerate(subnet):
        for layer, choice in enumerate(block):
            ops = gradients["blocks"][number][f"layer{layer}"]
            target = wanted["encoder"][f"block{number + 1}"][f"layer{layer}"]
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
                ops[str(choice.op)],
                target,
            )
            others = [leaf for op, tree in ops.items() if op != str(choice.op)
                      for leaf in jax.tree.leaves(tree)]  # fmt: skip
            assert not any(np.any(leaf) for leaf in others)
    np.testing.assert_allclose(
        gradients["rest"]["classifier"]["kernel"], wanted["classifier"]["kernel"], rtol=1e-3,
        atol=1e-5,
    )  # fmt: skip
