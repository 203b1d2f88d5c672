"""What the layers of a network cost on a device; NumPy alone.

target = hardware.named("bitfusion")
layers = hardware.layers(hardware.places(space.blocks, (64, 128)), space.ops)
hardware.cost_matrix(target, layers, [(8, 8), (4, 4)])["energy_mj"]  # [layers, ops, bits]
"""

from qnas_jax.hardware.candidates import Candidate, Layer, Place, given, layers, places
from qnas_jax.hardware.matrix import cost_matrix, fixed_costs, subnet_costs
from qnas_jax.hardware.target import TARGETS, Target, named, of_model

__all__ = [
    "TARGETS",
    "Candidate",
    "Layer",
    "Place",
    "Target",
    "cost_matrix",
    "fixed_costs",
    "given",
    "layers",
    "named",
    "of_model",
    "places",
    "subnet_costs",
]
