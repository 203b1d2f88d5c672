"""Whether a table tells the truth: what it adds up to, beside whole networks as measured."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from qnas_jax import metrics


class Audited(NamedTuple):
    """A subnet: what the tables say, and what was found."""

    subnet: str  # text form
    table_ms: float
    latency_ms: float  # of the whole network
    table_bytes: int  # logical
    size_bytes: int  # logical, added up over the layers that the exported network really has
    stored_bytes: int  # what the table says of a file of this format
    file_bytes: int


def pairs(subnets: Sequence[Audited]) -> tuple[list[tuple[float, float]], ...]:
    """Latencies (ms) and sizes (kB), each from the table and as found, to be drawn."""
    latencies = [(one.table_ms, one.latency_ms) for one in subnets]
    return latencies, [(one.stored_bytes / 1e3, one.file_bytes / 1e3) for one in subnets]


def verdict(subnets: Sequence[Audited]) -> dict[str, Any]:
    """How well the tables rank subnets (Kendall's tau) and hit their figures (percent).

    `size` compares the size table's column for this format with the file; `size_exact` says
    whether the logical bytes are, to the byte, those of the layers that were exported.
    """
    columns = {
        name: np.array([getattr(audited, name) for audited in subnets], np.float64)
        for name in Audited._fields[1:]
    }
    pairs = {"latency": ("table_ms", "latency_ms"), "size": ("stored_bytes", "file_bytes")}
    found: dict[str, Any] = {"subnets": len(subnets)}
    for name, (table, truth) in pairs.items():
        predicted, measured = columns[table], columns[truth]
        error = predicted / measured - 1
        found |= {
            f"{name}_tau": round(metrics.kendall_tau(predicted, measured), 4),
            f"{name}_mape": round(100 * float(np.abs(error).mean()), 3),
            f"{name}_bias": round(100 * float(error.mean()), 3),
        }
    exact = np.array_equal(columns["table_bytes"], columns["size_bytes"])
    return {**found, "size_exact": exact}
