"""The peer of the HAQ search: the published loop in torch, one agent and one policy at a time.

After https://github.com/mit-han-lab/haq: Python walks over the layers, draws an action with SciPy,
takes off bits, sets the bits of each layer, scores, and updates the agent once after each
transition that it stores in a list. Two things cost less here: ranges for each bitwidth are
found once (there with each policy), and a transition holds its next state.
"""

import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haq_torch_agent import Agent
from qnas_jax.haq import env
from qnas_jax.kernels import convolution
from qnas_jax.nn import policy
from qnas_jax.nn.conv import ConvBnAct
from qnas_jax.nn.trace import IMAGE, Trace, Unit
from qnas_jax.nn.units import Add, Input, Mean, pixels
from qnas_jax.search import allocation
from qnas_jax.space import LEAST_BITS, MOST_BITS
from qnas_jax.stages import quantizers
from qnas_jax.stages.scoring import Evaluate, Tested

COMPARED = 64  # images whose logits are compared


def peers(case: Any, evaluate: Evaluate) -> tuple[dict[str, Callable], dict[str, float]]:
    """Returns torch's search, warmed up, by where it runs, and how far its network is from ours.

    Args:
      case: The `haq.Case`.
      evaluate: Scores our policies.
    """
    places = {"cpu"}
    if jax.default_backend() == "gpu":
        places.add("cuda")
    searches = {place: Peer(case, evaluate, place) for place in sorted(places)}
    differences = {}
    for place, peer in searches.items():
        differences |= {f"{n}_{place}": value for n, value in peer.differences().items()}
        peer(os.cpu_count() or 1)
    threads = sorted({1, os.cpu_count() or 1})
    found = {
        f"cpu_{number}_threads": functools.partial(searches["cpu"], number) for number in threads
    }
    if "cuda" in searches:
        found["cuda"] = functools.partial(searches["cuda"], 1)
    return found, differences


class Peer:
    """Torch's search of the first goal; each call is an episode."""

    def __init__(self, case: Any, evaluate: Evaluate, place: str):
        """Takes the `haq.Case`, what scores our policies, and the device of torch."""
        import torch  # pyright: ignore[reportMissingImports]  # an extra: bench

        self._torch, self._place = torch, place
        self._case, self._evaluate = case, evaluate
        choices = case.goals[0].choices
        self._network = Network(case.tested, case.traced, case.rewards, case.norm_images, place)
        self._agent = Agent(case.how, case.layers, choices.cost, choices.budget, place)

    def __call__(self, threads: int) -> list[float]:
        """The times at which the parts of an episode begin, and its end; on so many threads."""
        self._torch.set_num_threads(threads)
        times = [time.perf_counter()]
        bits = self._agent.propose()
        times.append(time.perf_counter())
        accuracy = self._network.score(bits)
        times.append(time.perf_counter())
        self._agent.learn(float(env.reward_of(jnp.float32(accuracy), 0.0)))
        if self._place == "cuda":
            self._torch.cuda.synchronize()
        return [*times, time.perf_counter()]

    def differences(self) -> dict[str, float]:
        """How far torch's network is from ours: float logits, and classes at the same bits.

        The classes are compared with our statistics of the norms, and with torch's own. A value at
        the middle of two codes may be rounded to the other one here; a flat area of an image has
        many that are equal, which changes the statistics, and then all that follows.
        """
        case, network, model = self._case, self._network, self._case.tested.model
        images, given = case.rewards[0].images, case.tested.variables
        bits = allocation.uniform(case.goals[0].choices)
        ours = _logits(model, given, images[:COMPARED])
        theirs = network.logits(images[:COMPARED], quantized=False)
        read = {**case.tested.quantize(given["params"], bits), "batch_stats": given["batch_stats"]}
        settle: Any = jax.jit(functools.partial(model.apply, mutable=["batch_stats"]))
        read |= settle(read, pixels(jnp.asarray(case.norm_images)))[1]
        classes = _logits(model, read, images).argmax(1)
        found = {
            "max_diff_logits": float(np.abs(ours - theirs).max()),
            "max_logit": float(np.abs(theirs).max()),
            "accuracy": float(self._evaluate(bits[None]).accuracy[0]),
            "accuracy_torch": network.score(bits),
        }
        own = network.logits(images, quantized=True).argmax(1)
        network.take_statistics(read["batch_stats"])
        same = network.logits(images, quantized=True).argmax(1)
        found["equal_predictions"] = float((classes == same).mean())
        found["equal_predictions_settled"] = float((classes == own).mean())
        return found


class Network:
    """The network with its weights and ranges, channels_last."""

    def __init__(
        self, tested: Tested, traced: Trace, batches: Sequence[Any], norm_images, place: str
    ):
        """Takes over weights, and ranges of each bitwidth, from this project's network."""
        import torch  # pyright: ignore[reportMissingImports]  # an extra: bench

        self._torch, self._traced, self._place = torch, traced, place
        layers = len(traced.convs)
        self._by_bits = {
            bits: tested.quantize(tested.variables["params"], np.full((layers, 2), bits))
            for bits in range(LEAST_BITS, MOST_BITS + 1)
        }
        self._units = [(unit, self._unit(unit, tested.variables)) for unit in traced.units]
        last = {name: unit.name for unit in traced.units for name in unit.inputs}
        self._done = {unit.name: [n for n in last if last[n] == unit.name] for unit in traced.units}
        self._norms = self.pixels(norm_images)
        self._batches = [
            (self.pixels(b.images), torch.from_numpy(np.array(b.labels)).long().ravel().to(place))
            for b in batches
        ]

    def _unit(self, unit: Unit, variables) -> dict[str, Any]:
        """What a unit holds: weights and statistics, and what each bitwidth takes of them."""
        if type(unit.module) not in (Input, ConvBnAct, Add, Mean):
            raise ValueError(f"{unit.name}: the peer has no {type(unit.module).__name__}")
        grids = {b: policy.output_at(v["quant"], unit.name) for b, v in self._by_bits.items()}
        held = {"ranges": {b: np.asarray(grid["range"]) for b, grid in grids.items()}}
        if unit.conv:
            if any(unit.module.padding):  # pyright: ignore[reportAttributeAccessIssue]
                raise ValueError(f"{unit.name}: the peer pads with zeros")
            ours = policy.at(variables["params"], unit.name)
            norm = policy.at(variables["batch_stats"], f"{unit.name}/norm")
            held |= {"w": self._kernel(ours["kernel"]), "bias": self._vector(ours.get("bias", 0))}
            if norm:
                held |= {f"norm_{n}": self._vector(v) for n, v in ours["norm"].items()}
                held |= {name: self._vector(norm[name]) for name in ("mean", "var")}
            clipped = {b: policy.at(v["params"], unit.name) for b, v in self._by_bits.items()}
            held["absmax"] = {
                b: self._kernel(leaves["kernel"]).abs().amax((1, 2, 3), keepdim=True)
                for b, leaves in clipped.items()
            }
        return held

    def _kernel(self, w):
        w = self._torch.from_numpy(np.array(w).transpose(3, 2, 0, 1)).to(self._place)
        return w.contiguous(memory_format=self._torch.channels_last)

    def _vector(self, x):
        return self._torch.from_numpy(np.array(x, np.float32)).to(self._place)

    def pixels(self, images: np.ndarray) -> Any:
        """Bytes [n, h, w, 3] as the network reads them."""
        x = self._torch.from_numpy(np.array(images)).to(self._place)
        x = x.permute(0, 3, 1, 2).float() / 128 - 1
        return x.contiguous(memory_format=self._torch.channels_last)

    def set_bits(self, bits: np.ndarray) -> None:
        """Quantizes all weights, and sets the grids of all activations."""
        by_unit = quantizers.unit_policy(self._traced, np.asarray(bits))
        for unit, held in self._units:
            if unit.name in by_unit:
                w_bits, a_bits = (int(b) for b in by_unit[unit.name])
                if unit.conv:
                    scale = held["absmax"][w_bits] / (2 ** (w_bits - 1) - 1)
                    limit = held["absmax"][w_bits]
                    codes = (held["w"] * (1 / scale)).round_()  # halves have ties
                    held["rounded"] = codes.mul_(scale).clamp_(-limit, limit)
                held["grid"] = _grid(held["ranges"][a_bits], a_bits)

    def take_statistics(self, batch_stats) -> None:
        """Sets the statistics of all norms to ours."""
        for unit, held in self._units:
            if "mean" in held:
                norm = policy.at(batch_stats, f"{unit.name}/norm")
                held |= {name: self._vector(norm[name]) for name in ("mean", "var")}

    def score(self, bits: np.ndarray) -> float:
        """Accuracy in percent of a policy, with batch norms that have settled under it."""
        torch, right, total, loss = self._torch, 0, 0, 0.0
        self.set_bits(bits)
        with torch.no_grad():
            self._run(self._norms, quantized=True, settles=True)
            for inputs, labels in self._batches:
                logits = self._run(inputs, quantized=True)
                loss += float(torch.nn.functional.cross_entropy(logits, labels)) * len(labels)
                right += int((logits.argmax(1) == labels).sum())
                total += len(labels)
        return 100 * right / total

    def logits(self, images: np.ndarray, quantized: bool) -> np.ndarray:
        """Of bytes [n, h, w, 3]; quantized, with the policy and the statistics of `score`."""
        with self._torch.no_grad():
            return self._run(self.pixels(images), quantized).cpu().numpy()

    def _run(self, x, quantized: bool, settles: bool = False):
        values = {IMAGE: x}
        for unit, held in self._units:
            x = values[unit.inputs[0]]
            if isinstance(unit.module, Add):
                x = x + values[unit.inputs[1]]
            elif isinstance(unit.module, Mean):
                x = x.mean((2, 3), keepdim=True)
            elif unit.conv:
                x = self._conv(x, unit, held, quantized, settles)
            else:
                x = x.clone()  # what follows is in place
            if quantized and unit.has_grid:  # faster than fake_quantize_per_tensor_affine
                inverse, scale, low, high = held["grid"]
                x = x.mul_(inverse).round_().mul_(scale).clamp_(low, high)
            values[unit.name] = x
            for name in self._done[unit.name]:
                del values[name]
        return x.flatten(1)

    def _conv(self, x, unit, held, quantized, settles):
        functional, module = self._torch.nn.functional, unit.module
        pad = module.dilation * (module.kernel - 1) // 2
        how = (module.stride, pad, module.dilation, unit.conv.groups)
        bias = None if module.norm else held["bias"]
        x = functional.conv2d(x, held["rounded" if quantized else "w"], bias, *how)
        x = self._normed(x, held, settles) if module.norm else x
        low, high = module.bounds
        return x if np.isneginf(low) else x.clamp_(low, high)

    def _normed(self, x, held, settles):
        """Batch norm; where it settles, its statistics become those of the batch."""
        given = (held["mean"], held["var"], held["norm_scale"], held["norm_bias"])
        eps = convolution.NORM_EPSILON
        x = self._torch.nn.functional.batch_norm(x, *given, settles, 1.0, eps)
        if settles:
            count = x.numel() // x.shape[1]
            held["var"].mul_((count - 1) / count)  # as ours, the mean of squares
        return x


def _grid(range_: np.ndarray, bits: int) -> tuple[float, float, float, float]:
    """1 / scale, scale, and the ends of `affine.asymmetric_grid`."""
    one, most = np.float32(1), np.float32(2**bits - 1)
    low, high = np.minimum(range_[0], 0), np.maximum(range_[1], 0)
    scale = (high - low) / most if high > low else one
    zero = np.round(-low / scale)
    ends = -scale * zero, scale * (most - zero)
    return float(one / scale), float(scale), float(ends[0]), float(ends[1])


def _logits(model: Any, variables: Any, images: np.ndarray) -> np.ndarray:
    found: Any = jax.jit(model.apply)(variables, pixels(jnp.asarray(images)))
    return np.asarray(found).reshape(len(images), -1)
