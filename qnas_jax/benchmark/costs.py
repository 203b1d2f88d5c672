"""What each op of each block costs on every modelled device, as tables that add up."""

import numpy as np

from qnas_jax.benchmark import networks
from qnas_jax.benchmark.networks import Plan
from qnas_jax.hardware import candidates, matrix
from qnas_jax.hardware.target import NONE, TARGETS
from qnas_jax.nn.trace import convs

Tables = dict[str, np.ndarray]


def tables(plan: Plan) -> tuple[Tables, dict[str, float]]:
    """Returns the costs of blocks, and of what is in no block.

    Args:
      plan: The space; a block has one bitwidth for weights and activations.

    Returns:
      float64[blocks, ops, bits] by name, and one number by name. The names are "size_bytes",
      "macs", and "DEVICE/latency_ms" and "DEVICE/energy_mj" where a device's model has them.
    """
    traced = networks.widest(plan).traced
    first = next(unit for unit in traced.units if unit.site)
    where = candidates.places(plan.space.blocks, first.in_shape[:2])
    layers = candidates.layers(where, plan.space.ops)
    parts = {"stem": convs(traced.stem), "head": convs(traced.head)}
    bits = [(b, b) for b in plan.bits]
    blocks: Tables = {}
    fixed: dict[str, float] = {}
    for target in TARGETS.values():
        if target.costs or target == NONE:
            found = matrix.cost_matrix(target, layers, bits)
            others = matrix.fixed_costs(target, parts)
            for name in target.costs or found:
                known = f"{target.name}/{name}" if target.costs else name
                blocks[known] = found[name]
                fixed[known] = float(sum(others[name].values()))
    macs = np.array([[sum(conv.macs for conv in op.convs) for op in layer] for layer in layers])
    blocks["macs"] = np.repeat(macs[..., None], len(bits), axis=2).astype(np.float64)
    fixed["macs"] = float(sum(conv.macs for part in parts.values() for conv in part))
    return blocks, fixed
