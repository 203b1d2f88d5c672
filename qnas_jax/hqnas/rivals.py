"""Other ways to choose ops and bits in the same space; what they find is trained alike."""

import json
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qnas_jax import space
from qnas_jax.hqnas import derive, fronts, relax, searching, shared
from qnas_jax.hqnas.derive import Scored
from qnas_jax.hqnas.relax import Bounds
from qnas_jax.hqnas.searching import Warm
from qnas_jax.hqnas.shared import Shared, Shares
from qnas_jax.run import artefacts
from qnas_jax.run.stage import Stage, reading

Found = tuple[Stage, list[Scored], float]  # the best subnet first; seconds of the search

NEVER = -1e4  # the logit of what is never drawn; no gradient moves it


def sequential(warm: Warm, name: str, limits: Bounds) -> Found:
    """Searches ops first and bits then.

    Ops are searched as HQNAS searches, but with the most bits everywhere, which is near to float;
    their cost is counted at the middle bitwidth, as the bits are not known yet. Each choice of bits
    is then scored alone, and the best sum within the budgets is taken. Both are improved by the
    local search of HQNAS, ops at the first and bits at the second.

    Args:
      warm: Where it begins.
      name: Of the folder.
      limits: The costs with their budgets.
    """
    begun, described = warm.begun, warm.begun.network.shared
    most = int(np.argmax(described.bits))
    of_ops = relax.of_ops(described, limits)
    stage, state = searching.searched(warm, name, _only_ops(described, most), of_ops)
    likely = shared.subnet_of(described, state.logits)
    added = searching.added_losses(begun, stage, state.params, likely)
    only_ops = added._replace(w=_fixed(added.w, most), a=_fixed(added.a, most))
    scored = searching.found(
        begun, stage, state, only_ops, of_ops, warm.seed, stage.folder, parts=(0,)
    )
    ops = scored[0].subnet
    added = searching.added_losses(begun, stage, state.params, ops, "bits.npz")
    only_bits = added._replace(op=_fixed(added.op, shared.codes_of(described, ops)[:, 0]))
    file = stage.folder / "climbed.json"
    if not file.exists():
        subnet = derive.best_by_sum(described, only_bits, limits)
        subnet = searching.climbed(
            begun, state.params, subnet, only_bits, limits, warm.seed, parts=(1, 2)
        )
        artefacts.write_json(file, {"subnet": space.format_subnet(subnet)})
    with reading(file) as content:
        subnet = space.parse_subnet(json.load(content)["subnet"])
    best = searching.scored_alone(begun, stage, state.params, subnet, limits)
    stage.finish()
    return stage, [best], stage.seconds


def _only_ops(described: Shared, bits: int) -> Shares:
    """Logits of ops that are equally likely, with one bitwidth."""
    logits = relax.first(described, 0.0)
    never = jnp.where(jnp.arange(len(described.bits)) == bits, 0.0, NEVER)
    fixed = jnp.broadcast_to(never, logits.w.shape)
    return Shares(logits.op, fixed, fixed)


def _fixed(values: Array, places: Any) -> Array:
    """Added scores that allow one choice in each layer, given by its place."""
    own = np.arange(values.shape[1]) == np.broadcast_to(places, len(values))[:, None]
    return jnp.where(own, 0.0, jnp.inf)


def bwnas(warm: Warm, name: str, limits: Bounds) -> Found:
    """Takes the subnet of lowest NSR within the budgets from a front of QA-BWNAS.

    The arguments are those of `sequential`.

    Raises:
      InputError: The front cannot be read, or none of its subnets is allowed.
    """
    begun, own = warm.begun, warm.begun.config.hqnas
    file = fronts.file_of(own.fronts, warm.seed - begun.config.seed)
    subnet = fronts.best(file, begun.network.shared, limits)
    made_from = {
        "warmup": warm.stage.hash,
        "subnet": space.format_subnet(subnet),
        "norm_images": own.norm_images,
    }
    stage = Stage(warm.workdir / "hqnas" / name, made_from)
    stage.begin()
    scored = searching.scored_alone(begun, stage, warm.state.params, subnet, limits)
    stage.finish()
    return stage, [scored], fronts.seconds(file)
