"""The calibration of a whole network."""

import jax
import jax.numpy as jnp

from qnas_jax.train import supervised


def test_batches_after_the_first_compile_nothing(int8):
    """The variables are placed like those of a checkpoint, the policy like that of `init`."""
    variables = jax.device_put(int8.variables, jax.local_devices()[0])
    quant = jax.tree.map(jnp.asarray, int8.quant)
    compiled = []

    def batches():
        for number in range(3):
            compiled.append(0)
            yield int8.images[number : number + 1]

    def count(name, *_, **__):
        if name.endswith("backend_compile_duration"):
            compiled[-1] += 1

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        supervised.calibrated(int8.model, variables, quant, batches())
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled[0] > 0
    assert compiled[1:] == [0, 0]
