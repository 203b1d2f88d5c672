"""The peer of distillation's step: a block of the supernet in torch, one path at a time."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from qnas_jax import metrics, space
from qnas_jax.kernels import convolution

PARTS = ("expand", "depthwise", "project")


class Torch:
    """A block's ops as modules, channels_last on all cores; norms use the batch's statistics."""

    def __init__(self, params, block: space.Block, ops, lr, momentum, weight_decay):
        """Takes over the weights."""
        import torch  # pyright: ignore[reportMissingImports]  # an extra: bench

        torch.set_num_threads(os.cpu_count() or 1)
        self._torch, self._block, self._names = torch, block, [str(op) for op in ops]
        self._ops = [[self._op(layer, op) for op in ops] for layer in range(block.depth)]
        for conv, norm, ours in self._walk(params):
            with torch.no_grad():
                conv.weight.copy_(torch.from_numpy(np.array(ours["kernel"]).transpose(3, 2, 0, 1)))
                norm.weight.copy_(torch.from_numpy(np.array(ours["norm"]["scale"])))
                norm.bias.copy_(torch.from_numpy(np.array(ours["norm"]["bias"])))
        found = [p for layer in self._ops for op in layer for p in op.parameters()]
        decays = {
            weight_decay: [p for p in found if p.ndim == 4],
            0.0: [p for p in found if p.ndim == 1],
        }
        groups = [{"params": p, "weight_decay": decay} for decay, p in decays.items()]
        self._optimizer = torch.optim.SGD(groups, lr, momentum)

    def _op(self, layer, op) -> Any:
        nn, block = self._torch.nn, self._block
        inputs, stride = block.layer_shape(layer)
        hidden, dilation = inputs * op.expansion, block.layer_dilation(layer)
        shape = (op.kernel, stride, dilation * (op.kernel - 1) // 2, dilation, hidden)
        parts = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            self._norm(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, hidden, *shape, bias=False),
            self._norm(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, block.channels, 1, bias=False),
            self._norm(block.channels),
        )
        return parts.train().to(memory_format=self._torch.channels_last)

    def _norm(self, channels):
        # The supernet keeps no running statistics.
        return self._torch.nn.BatchNorm2d(
            channels, convolution.NORM_EPSILON, track_running_stats=False
        )

    def _walk(self, params) -> Iterator[tuple[Any, Any, Any]]:
        """(convolution, norm, what `params` holds of them) of every part of every op."""
        for layer, ops in enumerate(self._ops):
            for name, op in zip(self._names, ops, strict=True):
                for i, part in enumerate(PARTS):
                    ours = params[f"layer{layer}"][name][part]
                    yield op[3 * i], op[3 * i + 1], ours

    def tensor(self, x) -> Any:
        """Features [n, h, w, c] as torch has them."""
        x = self._torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)
        return x.contiguous(memory_format=self._torch.channels_last)

    def train(self, paths: Sequence[Sequence[int]], x, target) -> float:
        """A step for each path; returns the mean of their losses."""
        losses, variance = [], self._variance(target)
        for path in paths:
            self._optimizer.zero_grad(set_to_none=True)
            loss = self._loss(path, x, target, variance)
            loss.backward()
            self._optimizer.step()
            losses.append(float(loss.detach()))
        return sum(losses) / len(losses)

    def compare(self, paths: Sequence[Sequence[int]], x, target, gradients):
        """The mean loss without a step, and how far gradients are from those given.

        Returns:
          The loss, and the largest and the median over all parameters of max |ours - torch's|
          over max |torch's|. The largest shows rounding at ReLU6's corners: of some ten million
          values, one or a few are so near that only one of the two passes their gradient on.
        """
        self._optimizer.zero_grad(set_to_none=True)
        variance, losses = self._variance(target), []
        for path in paths:  # no two share an op, so gradients do not add up
            loss = self._loss(path, x, target, variance)
            loss.backward()
            losses.append(float(loss.detach()))
        distances = []
        for conv, norm, ours in self._walk(gradients):
            if conv.weight.grad is not None:
                pairs = (
                    (ours["kernel"], conv.weight.grad.permute(2, 3, 1, 0)),
                    (ours["norm"]["scale"], norm.weight.grad),
                    (ours["norm"]["bias"], norm.bias.grad),
                )
                distances += [_distance(np.asarray(g), t.numpy()) for g, t in pairs]
        return sum(losses) / len(losses), max(distances), float(np.median(distances))

    def _variance(self, target):
        return target.var((0, 2, 3), correction=0)

    def _loss(self, path, x, target, variance):
        for layer, op in enumerate(path):
            y = self._ops[layer][op](x)
            inputs, stride = self._block.layer_shape(layer)
            x = x + y if stride == 1 and inputs == self._block.channels else y
        noise = (x - target).square().mean((0, 2, 3))
        return (noise / (variance + metrics.NSR_EPSILON)).mean()


def _distance(ours: np.ndarray, torchs: np.ndarray) -> float:
    return float(np.abs(ours - torchs).max() / np.abs(torchs).max())
