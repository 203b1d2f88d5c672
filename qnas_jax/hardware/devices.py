"""Devices as data: parameters with their units and their sources.

Models read them (`roofline.py`, `bismo.py`, `bitfusion.py`); to add a device, add an instance.
Parameters that no paper gives are fitted to published figures (`published.py`) by

    qnas fit_devices

and marked "fitted" below.
"""

import dataclasses

HAQ = "Wang et al., 2019, https://arxiv.org/abs/1811.08886v3"
BITFUSION_CODE = "https://github.com/hsharma35/bitfusion"


@dataclasses.dataclass(frozen=True, slots=True)
class Roofline:
    """A device whose layers are bound by its peak or by its memory.

    Attributes:
      bits: The bitwidths that it computes and stores, ascending; narrower ones are widened.
      peak_ops_per_s: Peak at each of them; a multiply-accumulate is two operations.
      bandwidth_bytes_per_s: Bandwidth of the memory outside the chip.
      on_chip_bytes: Memory on the chip, which keeps features from one layer to the next.
      source: Where the figures come from.
    """

    bits: tuple[int, ...]
    peak_ops_per_s: tuple[float, ...]
    bandwidth_bytes_per_s: float
    on_chip_bytes: int
    source: str


@dataclasses.dataclass(frozen=True, slots=True)
class Bismo:
    """A bit-serial array of dot products.

    Attributes:
      batch: Images computed together; a latency is that of all of them.
      rows: Activations' dot products at once.
      columns: Weights' dot products at once.
      dot_bits: Length of a dot product, in single bits.
      axi_bits: Width of the port that feeds an operand; one of four.
      clock_hz: Clock.
      source: Where the figures come from.
    """

    batch: int
    rows: int
    columns: int
    dot_bits: int
    axi_bits: int
    clock_hz: float
    source: str


@dataclasses.dataclass(frozen=True, slots=True)
class Sram:
    """A buffer on the chip.

    Attributes:
      size_bytes: Size of both halves; one is filled while the other is in use.
      read_pj: Energy to read a bit.
      write_pj: Energy to write a bit.
    """

    size_bytes: int
    read_pj: float
    write_pj: float


@dataclasses.dataclass(frozen=True, slots=True)
class BitFusion:
    """A systolic array of 8-bit multipliers that split into narrower ones.

    Attributes:
      rows: Units that take different input channels and taps.
      columns: Units that take different output channels.
      clock_hz: Clock.
      bus_bits: Bits between DRAM and chip in a cycle.
      weights: The buffer of weights.
      inputs: The buffer of activations.
      outputs: The buffer of sums.
      core_pj: Energy of a cycle in which the array computes.
      dram_pj: Energy to move a bit to or from DRAM.
      static_w: Power that is always drawn.
      source: Where the figures come from.
    """

    rows: int
    columns: int
    clock_hz: float
    bus_bits: int
    weights: Sram
    inputs: Sram
    outputs: Sram
    core_pj: float
    dram_pj: float
    static_w: float
    source: str


# Round figures, not those of a real CPU; replace them by your own. VPDPBUSD computes 64 products
# at once, a fused multiply-add of floats 16.
CPU_VNNI = Roofline(
    bits=(8, 32),
    peak_ops_per_s=(2 * 64 * 2.5e9, 2 * 16 * 2.5e9),
    bandwidth_bytes_per_s=10e9,
    on_chip_bytes=2**20,
    source="an example: AVX-512 VNNI, one instruction a cycle at 2.5 GHz, 10 GB/s, 1 MiB of L2",
)

BISMO_EDGE = Bismo(  # Zynq-7020
    batch=1,
    rows=8,
    columns=8,
    dot_bits=256,
    axi_bits=64,
    clock_hz=129.2e6,  # fitted
    source=f"{HAQ}, table 2 and section 4.1",
)
BISMO_CLOUD = Bismo(  # VU9P
    batch=16,
    rows=16,
    columns=16,
    dot_bits=256,
    axi_bits=256,
    clock_hz=203.5e6,  # fitted
    source=f"{HAQ}, table 2 and section 4.1",
)

# Energies of a bit and leakage: from the simulator's table of CACTI runs at 45 nm, for the size of
# one bank; sizes that it lacks are interpolated between their neighbours (marked ~). Energy of
# the array: from its synthesis of 4 x 4 units, scaled by the number of units.
BITFUSION = BitFusion(
    rows=8,
    columns=8,
    clock_hz=500e6,
    bus_bits=128,
    weights=Sram(262_144, read_pj=0.107, write_pj=0.135),
    inputs=Sram(65_536, read_pj=0.200, write_pj=0.174),
    outputs=Sram(16_384, read_pj=0.080, write_pj=0.122),  # ~
    core_pj=29.4,
    dram_pj=15.0,
    static_w=0.8194,  # fitted; leakage alone is 0.61
    source=f"{BITFUSION_CODE}, conf.ini",
)
BITFUSION_EYERISS = BitFusion(  # the area of Eyeriss
    rows=16,
    columns=32,
    clock_hz=500e6,
    bus_bits=192,
    weights=Sram(65_536, read_pj=0.0214, write_pj=0.0289),
    inputs=Sram(32_768, read_pj=0.0595, write_pj=0.114),
    outputs=Sram(16_384, read_pj=0.0332, write_pj=0.0731),
    core_pj=235.0,
    dram_pj=15.0,
    static_w=0.24,  # leakage
    source=f"{BITFUSION_CODE}, bf_e_conf.ini",
)
BITFUSION_STRIPES = BitFusion(  # the area of Stripes
    rows=16,
    columns=32,
    clock_hz=980e6,
    bus_bits=4096,
    weights=Sram(131_072, read_pj=0.025, write_pj=0.044),  # ~
    inputs=Sram(131_072, read_pj=0.200, write_pj=0.174),
    outputs=Sram(131_072, read_pj=0.124, write_pj=0.158),
    core_pj=235.0,
    dram_pj=15.0,
    static_w=0.76,  # leakage
    source=f"{BITFUSION_CODE}, bf_s_conf.ini",
)
