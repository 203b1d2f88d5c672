"""A network as plain data: what is written to files, run as integers, and described.

Nothing here knows a runtime, a file format or Flax. The same records hold a quantized network
(tensors are codes on grids, `real = scale * (code - zero_point)`) and a float one (tensors are
real values). In both, batch norm is folded into weights and biases. Every tensor has the name
of its node, which is the path of the unit in the Flax network.

Images are [height, width, channels]; the batch axis is the runtime's.
"""

import dataclasses
from typing import NamedTuple, TypeAlias

import numpy as np

from qnas_jax import space

Shape = tuple[int, int, int]  # height, width, channels of one image
Bounds = tuple[float, float]  # the interval that an activation clips to

BYTE_VALUES = 256


class QParams(NamedTuple):
    """The grid of an activation: what its codes ``0 ... 2**bits - 1`` stand for."""

    scale: float  # a float32 number
    zero_point: int
    bits: int

    @property
    def q_max(self) -> int:
        """The highest code; the lowest is 0."""
        return 2**self.bits - 1

    def codes(self, x: np.ndarray) -> np.ndarray:
        """The codes of real values, uint8; ties round to even, as in `quant/affine.py`."""
        scaled = np.rint(x * (np.float32(1) / np.float32(self.scale))) + self.zero_point
        return np.clip(scaled, 0, self.q_max).astype(np.uint8)

    def reals(self, codes: np.ndarray) -> np.ndarray:
        """The real values of codes, float32."""
        return np.float32(self.scale) * (codes.astype(np.float32) - np.float32(self.zero_point))

    def code_bounds(self, bounds: Bounds) -> tuple[int, int]:
        """The codes that an activation clips to.

        Rounding keeps order, so clipping codes is the same as clipping real values first.
        """
        scaled = np.asarray(bounds, np.float64) / self.scale + self.zero_point
        low, high = np.rint(np.clip(scaled, 0, self.q_max))
        return int(low), int(high)


class Tensor(NamedTuple):
    """The output of a node: codes where it has a grid, else real values."""

    name: str
    shape: Shape
    grid: QParams | None = None
    site: space.Site | None = None  # of the unit whose output it is


@dataclasses.dataclass(frozen=True, slots=True)
class ConvNode:
    """Convolution, folded batch norm, activation and the grid of the output.

    Attributes:
      out: Its output.
      x: Name of the tensor that it reads.
      weights: [k, k, inputs / groups, outputs]; int8 codes (zero point 0), or float32.
      bias: float32[outputs], real units.
      stride: Same in both directions, as are kernel and dilation.
      dilation: Distance of the taps.
      groups: 1, or the number of channels (depthwise).
      bounds: The interval that the activation clips to, real units.
      w_bits: Bitwidth of the weights; None in float.
      w_scale: float32[outputs], of the codes; None in float.
      bias_codes: int32[outputs], of scale ``scale of x * w_scale``; None in float.
      padding: What lies around `x`, by channel, real units; zero where it is empty.
    """

    out: Tensor
    x: str
    weights: np.ndarray
    bias: np.ndarray
    stride: int
    dilation: int
    groups: int
    bounds: Bounds
    w_bits: int | None = None
    w_scale: np.ndarray | None = None
    bias_codes: np.ndarray | None = None
    padding: tuple[float, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors that it reads."""
        return (self.x,)

    @property
    def kernel(self) -> int:
        """Side of the kernel, odd."""
        return self.weights.shape[0]

    @property
    def pad(self) -> int:
        """Pixels of the padding on every side."""
        return self.dilation * (self.kernel - 1) // 2

    def padding_codes(self, read: QParams) -> np.ndarray:
        """Codes of the padding: one by channel, or a single one, the zero point."""
        real = np.array(self.padding or (0.0,), np.float32)
        return read.codes(real)


@dataclasses.dataclass(frozen=True, slots=True)
class _Unary:
    """A node that reads one tensor."""

    out: Tensor
    x: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors that it reads."""
        return (self.x,)


@dataclasses.dataclass(frozen=True, slots=True)
class _Joint:
    """A node that reads several tensors."""

    out: Tensor
    inputs: tuple[str, ...]


class Dequantize(_Unary):
    """Codes as real values."""


class Mean(_Unary):
    """Mean over an image's pixels; gives one pixel."""


class Broadcast(_Unary):
    """One pixel, repeated to the output's shape; the grid stays."""


class Resize(_Unary):
    """Real values at another resolution: bilinear, pixel centres aligned, edges repeated."""


class ArgMax(_Unary):
    """The channel with the highest value, the first of several; one channel, see `class_type`."""


def class_type(channels: int) -> type[np.uint8] | type[np.int32]:
    """The type that an `ArgMax` of so many channels gives: bytes if they suffice."""
    return np.uint8 if channels <= BYTE_VALUES else np.int32


class Add(_Joint):
    """Sum of two tensors of the same shape, each on its own grid."""


class Concat(_Joint):
    """Tensors of the same grid, joined by channels; the grid stays."""


Node: TypeAlias = ConvNode | Dequantize | Mean | Broadcast | Resize | ArgMax | Add | Concat


class Graph(NamedTuple):
    """A network: its input, and its nodes in the order in which they run.

    The input is uint8 where it has a grid (bytes of an image are codes of the pixels'
    grid), else float32. The last node gives the output.
    """

    x: Tensor
    nodes: tuple[Node, ...]

    @property
    def out(self) -> Tensor:
        """The output of the last node."""
        return self.nodes[-1].out

    @property
    def convs(self) -> tuple[ConvNode, ...]:
        """The convolutions among the nodes."""
        return tuple(node for node in self.nodes if isinstance(node, ConvNode))

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name, the input first."""
        return {self.x.name: self.x, **{node.out.name: node.out for node in self.nodes}}
