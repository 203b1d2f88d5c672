"""The benchmark as data: what every network has under every policy, looked up in an instant.

A file of it is a NumPy archive, `objects.npz`, of these arrays:

    format        the number of this format
    blocks        int64[blocks, 5], of each block: input channels, channels, stride, dilation, depth
    ops           int64[ops, 2], of each op: kernel, expansion
    bits          int64[bits], of a block's weights and of its activations
    images        images on which right answers were counted
    right         uint16[networks, seeds, policies], right answers where quantized
    float_right   uint16[networks, seeds], right answers in float
    teacher_right right answers of the teacher in float
    nsr           float32[blocks, ops, 1 + bits], in float, then at each bitwidth
    cost/NAME     float64[blocks, ops, bits], what a block costs
    fixed/NAME    what is in no block costs

Networks and policies are numbered as `numpy.ravel_multi_index` does it: the choice of the last
block changes fastest.
"""

import dataclasses
import io
import pathlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int, UInt16

from qnas_jax.errors import InputError
from qnas_jax.run import artefacts, disk
from qnas_jax.run.stage import DAMAGE
from qnas_jax.space import Block, Op, Space

FORMAT = 1
SHIPPED = pathlib.Path(__file__).with_name("objects.npz")
COMMAND = "qnas benchmark --workdir runs/benchmark"


@dataclasses.dataclass(frozen=True, eq=False)
class Benchmark:
    """Every network of a small space under every policy.

    Attributes:
      space: Blocks of one layer each, and the ops that they choose from.
      bits: Bitwidths that a block chooses from, for its weights and its activations.
      images: Images on which right answers were counted.
      right: Right answers by network, seed and policy.
      float_right: Right answers in float by network and seed.
      teacher_right: Right answers of the teacher in float.
      nsr: NSR of each block's ops, distilled from the teacher: in float, then at each bitwidth.
      cost_tables: What the blocks cost, by the name of the cost, [blocks, ops, bits].
      fixed_costs: What is in no block costs, by the name of the cost.
    """

    space: Space
    bits: tuple[int, ...]
    images: int
    right: UInt16[np.ndarray, "networks seeds policies"]
    float_right: UInt16[np.ndarray, "networks seeds"]
    teacher_right: int
    nsr: Float[np.ndarray, "blocks ops columns"]
    cost_tables: Mapping[str, np.ndarray]
    fixed_costs: Mapping[str, float]

    @property
    def seeds(self) -> int:
        """How often each network was trained."""
        return self.right.shape[1]

    def accuracy(
        self,
        ops: Int[np.ndarray, "*n blocks"],
        bits: Int[np.ndarray, "*n blocks"],
        seed: int | None = None,
    ) -> Float[np.ndarray, "*n"]:
        """Returns the accuracy of quantized networks, in percent.

        Args:
          ops: Of each block, the place of its op in `space.ops`.
          bits: Of each block, the place of its bitwidth in `bits`.
          seed: Which training; None: the mean of all.

        Raises:
          ValueError: A place or the seed does not exist, or there is not one place for each block.
        """
        network = self._number(self._ops(ops), len(self.space.ops))
        policy = self._number(self._bits(bits), len(self.bits))
        return self._percent(self.right[network, :, policy], seed)

    def block_nsr(
        self, ops: Int[np.ndarray, "*n blocks"], bits: Int[np.ndarray, "*n blocks"]
    ) -> Float[np.ndarray, "*n blocks"]:
        """Returns the NSR of each block of quantized networks; see `accuracy`."""
        blocks = np.arange(len(self.space.blocks))
        return self.nsr[blocks, self._ops(ops), 1 + self._bits(bits)].astype(np.float64)

    def float_block_nsr(self, ops: Int[np.ndarray, "*n blocks"]) -> Float[np.ndarray, "*n blocks"]:
        """Returns the NSR of each block of networks in float; see `accuracy`."""
        blocks = np.arange(len(self.space.blocks))
        return self.nsr[blocks, self._ops(ops), 0].astype(np.float64)

    def float_accuracy(
        self, ops: Int[np.ndarray, "*n blocks"], seed: int | None = None
    ) -> Float[np.ndarray, "*n"]:
        """Returns the accuracy of networks in float, in percent; see `accuracy`."""
        network = self._number(self._ops(ops), len(self.space.ops))
        return self._percent(self.float_right[network], seed)

    def costs(
        self, ops: Int[np.ndarray, "*n blocks"], bits: Int[np.ndarray, "*n blocks"]
    ) -> dict[str, np.ndarray]:
        """Returns what whole networks cost, float64[*n] by the name of the cost.

        Args:
          ops: Of each block, the place of its op in `space.ops`.
          bits: Of each block, the place of its bitwidth in `bits`.
        """
        return {name: self.cost(name, ops, bits) for name in self.cost_tables}

    def cost(
        self, name: str, ops: Int[np.ndarray, "*n blocks"], bits: Int[np.ndarray, "*n blocks"]
    ) -> Float[np.ndarray, "*n"]:
        """Returns one cost of whole networks; see `costs`."""
        blocks = np.arange(len(self.space.blocks))
        found = self.cost_tables[name][blocks, self._ops(ops), self._bits(bits)]
        return np.asarray(found.sum(-1) + self.fixed_costs[name])

    def _ops(self, ops: np.ndarray) -> np.ndarray:
        return self._places("ops", ops, len(self.space.ops))

    def _bits(self, bits: np.ndarray) -> np.ndarray:
        return self._places("bits", bits, len(self.bits))

    def _places(self, name: str, places: np.ndarray, count: int) -> np.ndarray:
        places, blocks = np.asarray(places), len(self.space.blocks)
        if places.shape[-1:] != (blocks,):
            raise ValueError(f"{name} of the shape {places.shape}: the last axis must be {blocks}")
        if places.size and not (places.min() >= 0 and places.max() < count):
            raise ValueError(f"{name}: places must lie in [0, {count - 1}]")
        return places

    def _number(self, places: np.ndarray, count: int) -> np.ndarray:
        axes = np.moveaxis(np.asarray(places), -1, 0)
        return np.asarray(np.ravel_multi_index(tuple(axes), (count,) * len(axes)))

    def _percent(self, right: np.ndarray, seed: int | None) -> np.ndarray:
        if seed is not None and not 0 <= seed < self.seeds:
            raise ValueError(f"seed={seed}: must be None or lie in [0, {self.seeds - 1}]")
        found = right.mean(-1) if seed is None else right[..., seed].astype(np.float64)
        return np.asarray(100 * found / self.images)


def save(path: pathlib.Path, found: Benchmark) -> None:
    """Writes a benchmark, completely or not at all; equal ones give equal files."""
    arrays = {
        "format": np.int64(FORMAT),
        "blocks": np.array([dataclasses.astuple(b)[:5] for b in found.space.blocks], np.int64),
        "ops": np.array(found.space.ops, np.int64),
        "bits": np.array(found.bits, np.int64),
        **{name: getattr(found, name) for name in ("right", "float_right", "nsr")},
        **{name: np.int64(getattr(found, name)) for name in ("images", "teacher_right")},
        **{f"cost/{name}": table for name, table in found.cost_tables.items()},
        **{f"fixed/{name}": np.float64(value) for name, value in found.fixed_costs.items()},
    }
    with artefacts.writing(path) as file:
        np.savez_compressed(file, **arrays)


def load(path: str | pathlib.Path | None = None) -> Benchmark:
    """Reads a benchmark.

    Args:
      path: The file; None: the one that comes with the package.

    Raises:
      InputError: The file is missing or damaged, cannot be read, or has another format.
    """
    file = SHIPPED if path is None else pathlib.Path(path)
    try:
        content = disk.read(file)
    except disk.Missing:
        raise InputError(f"{file}: no such file; `{COMMAND}` makes it") from None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = dict(archive)
        if arrays["format"] != FORMAT:
            raise ValueError(f"format {arrays['format']}, must be {FORMAT}")
        return _checked(arrays)
    except DAMAGE as error:
        raise InputError(f"{file}: is no benchmark, or damaged ({error}); `{COMMAND}`") from None


def _checked(arrays: dict[str, np.ndarray]) -> Benchmark:
    """The benchmark of a file's arrays.

    Raises:
      ValueError: An array has another shape than the space gives it.
    """
    space = Space(
        tuple(Block(*row) for row in arrays["blocks"].tolist()),
        tuple(Op(*row) for row in arrays["ops"].tolist()),
    )
    bits = tuple(map(int, arrays["bits"]))
    blocks, ops, seeds = len(space.blocks), len(space.ops), arrays["float_right"].shape[-1]
    tables = {name[5:]: array for name, array in arrays.items() if name.startswith("cost/")}
    for name in ("size_bytes", "macs"):
        if name not in tables:
            raise ValueError(f"it has no cost/{name}")
    shapes = {
        "right": (ops**blocks, seeds, len(bits) ** blocks),
        "float_right": (ops**blocks, seeds),
        "nsr": (blocks, ops, 1 + len(bits)),
        **{f"cost/{name}": (blocks, ops, len(bits)) for name in tables},
        **{f"fixed/{name}": () for name in tables},
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} has the shape {arrays[name].shape}, must have {shape}")
        if not np.isfinite(arrays[name]).all() or (arrays[name] < 0).any():
            raise ValueError(f"{name} has values that are negative or not finite")
    most = max(arrays[name].max(initial=0) for name in ("right", "float_right", "teacher_right"))
    if not 0 < most <= arrays["images"]:
        raise ValueError(f"{most} right answers of {arrays['images']} images")
    return Benchmark(
        space,
        bits,
        int(arrays["images"]),
        arrays["right"],
        arrays["float_right"],
        int(arrays["teacher_right"]),
        arrays["nsr"],
        tables,
        {name: float(arrays[f"fixed/{name}"]) for name in tables},
    )
