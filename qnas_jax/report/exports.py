"""The report's table of exported files: their size, their speed, what they compute."""

from collections.abc import Mapping
from typing import NamedTuple

_HEAD = """<h2>Files</h2>
<table>
<tr><th>network</th><th>model.onnx, kB</th><th>over the size table</th><th>{}</th>
<th>as simulated</th><th>float, ms</th><th>quantized, ms</th><th>times as fast</th></tr>
"""
_NOTE = """</table>
<p class="note">The quantized file on ONNX Runtime: its size, and how much larger it is than the
weights, scales and biases that the size table counts for this format; its score; the share of
predictions that equal those of the integer simulation in JAX; the latency of one image on one
thread, in float and quantized, on this machine under its load at that time.</p>
"""


class File(NamedTuple):
    """The figures of a network's exported file.

    Attributes:
      file_bytes: Size of the quantized file.
      stored_bytes: Weights, scales and biases in a file of its format, by the size table.
      score: The main figure of the file, in percent.
      agreement: Share of predictions that equal the simulation's, in percent.
      float_ms: Latency of the float file.
      quantized_ms: Latency of the quantized file.
    """

    file_bytes: int
    stored_bytes: int
    score: float
    agreement: float
    float_ms: float
    quantized_ms: float

    @property
    def ratio(self) -> float:
        """How many times as fast the quantized file is."""
        return self.float_ms / self.quantized_ms


def as_html(files: Mapping[str, File], title: str) -> str:
    """The section of the report, from the files by network; empty if there are no files.

    Args:
      files: The file of each network, by its name in the report.
      title: Name of the main figure.
    """
    if not files:
        return ""
    rows = []
    for name, file in files.items():
        over = 100 * (file.file_bytes / file.stored_bytes - 1)
        cells = [name, f"{file.file_bytes / 1e3:.1f}", f"{over:+.1f} %", f"{file.score:.2f}"]
        cells += [f"{file.agreement:.3f} %", f"{file.float_ms:.3g}", f"{file.quantized_ms:.3g}"]
        cells.append(f"{file.ratio:.2f}")
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return _HEAD.format(title) + "\n".join(rows) + _NOTE
