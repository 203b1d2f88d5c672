"""The report's table of exported files: their size, their speed, what they compute."""

from collections.abc import Sequence
from typing import NamedTuple

_HEAD = """<h2>Files</h2>
<table>
<tr><th>network</th><th>model.onnx, kB</th><th>over the size table</th><th>mIoU</th>
<th>pixels as simulated</th><th>float, ms</th><th>quantized, ms</th><th>times as fast</th></tr>
"""
_NOTE = """</table>
<p class="note">The quantized file on ONNX Runtime: its bytes, and how many it has beyond the
weights, scales and biases that the size table counts for this format; the mIoU that it reaches;
the share of pixels to which it gives the class that the simulation of integers in JAX gives;
milliseconds for a picture on one thread, in float and quantized, on this machine as busy as it
was.</p>
"""


class File(NamedTuple):
    """What is told of a network's exported file.

    Attributes:
      file_bytes: Of the quantized file.
      stored_bytes: What the size table says of a file of its format: weights, scales, biases.
      miou: Of the file, in percent.
      agreement: Share of pixels that have the simulation's class, in percent.
      float_ms: Latency of the float file.
      quantized_ms: Latency of the quantized file.
    """

    file_bytes: int
    stored_bytes: int
    miou: float
    agreement: float
    float_ms: float
    quantized_ms: float

    @property
    def ratio(self) -> float:
        """How many times as fast the quantized file is."""
        return self.float_ms / self.quantized_ms


def as_html(names: Sequence[str], files: Sequence[File]) -> str:
    """The section of the report; nothing where there are no files."""
    if not files:
        return ""
    rows = []
    for name, file in zip(names, files, strict=True):
        over = 100 * (file.file_bytes / file.stored_bytes - 1)
        cells = [name, f"{file.file_bytes / 1e3:.1f}", f"{over:+.1f} %", f"{file.miou:.2f}"]
        cells += [f"{file.agreement:.3f} %", f"{file.float_ms:.3g}", f"{file.quantized_ms:.3g}"]
        cells.append(f"{file.ratio:.2f}")
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return _HEAD + "\n".join(rows) + _NOTE
