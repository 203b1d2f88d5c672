"""What this machine's CPU has, found out otherwise than the package does."""

import pathlib
import shutil

import pytest

_INFO = pathlib.Path("/proc/cpuinfo")
HAS_VNNI = _INFO.exists() and "avx512_vnni" in _INFO.read_text().split()

needs_vnni = pytest.mark.skipif(not HAS_VNNI, reason="this CPU has no AVX-512 VNNI")


def compiler():
    """The C++ compiler, without which tests on this CPU fail: nothing else tests the kernels."""
    found = shutil.which("c++")
    assert found, "install a C++ compiler (c++): this CPU has AVX-512 VNNI"
    return found
