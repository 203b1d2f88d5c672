import concurrent.futures
import os
import subprocess
import sys
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax.nn import byte_conv, native

needs_cpp = pytest.mark.skipif(not native.available(), reason="this CPU or its compiler")


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """As if nothing had been compiled yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "_cpu_multiplies_bytes", lambda: True)
    return native.available.__wrapped__


def test_without_a_compiler_it_is_said_once_and_floats_are_used(fresh, monkeypatch, caplog):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(native.shutil, "which", lambda _: None)
    assert not fresh()
    (line,) = caplog.messages
    assert line == "there is no C++ compiler (c++): the table takes several times as long"


@pytest.mark.parametrize(
    ("compiler", "said"),
    [("false", "returned non-zero exit status 1"), ("no-such-compiler", "No such file")],
)
def test_a_compiler_that_fails_is_told_of(fresh, monkeypatch, caplog, tmp_path, compiler, said):
    monkeypatch.setenv("CXX", compiler)
    assert not fresh()
    (line,) = caplog.messages
    assert (
        line.startswith(f"{compiler} does not compile native.cc: the table takes") and said in line
    )
    assert not list((tmp_path / "qnas_jax").iterdir())


def test_other_cpus_are_left_alone(monkeypatch, caplog):
    for machine in ("arm64", "aarch64"):
        monkeypatch.setattr(native.platform, "machine", lambda machine=machine: machine)
        assert not native._cpu_multiplies_bytes()
    assert not native.available.__wrapped__() and not caplog.messages
    monkeypatch.setattr(native, "available", lambda: False)
    assert byte_conv.is_fast() == (jax.default_backend() != "cpu")


@needs_cpp
def test_it_is_compiled_once_for_all_processes(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    program = [sys.executable, "-c", "from qnas_jax.nn import native; assert native.available()"]
    running = [subprocess.Popen(program, env=environment) for _ in range(3)]
    assert [process.wait(timeout=300) for process in running] == [0, 0, 0]
    (made,) = (tmp_path / "qnas_jax").iterdir()
    before = made.stat().st_mtime_ns
    subprocess.run(program, env=environment, check=True)
    assert made.stat().st_mtime_ns == before


@needs_cpp
def test_many_calls_at_once_give_what_each_gives_alone():
    """They share the threads that they spread their work over."""
    rng = np.random.default_rng(0)
    w = native.pack_depthwise(jnp.float32(rng.integers(-127, 128, (7, 7, 40))))
    xs = rng.integers(0, 256, (16, 3, 20, 24, 40)).astype(np.uint8)
    norm = jnp.stack([jnp.full(40, 2.0**-10), jnp.full(40, 99.0), jnp.full(40, 255.0)])
    run = jax.jit(lambda x: native.depthwise(x, w, norm, 1, 2))
    alone = [np.asarray(run(x)) for x in xs]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for found, expected in zip(pool.map(run, xs), alone, strict=True):
                np.testing.assert_array_equal(found, expected)
    together = jax.jit(lambda xs: [native.depthwise(x, w, norm, 1, 2) for x in xs])
    for found, expected in zip(together(list(xs)), alone, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_source_is_part_of_the_package():
    project = tomllib.loads((native.SOURCE.parents[2] / "pyproject.toml").read_text())
    (pattern,) = project["tool"]["setuptools"]["package-data"]["qnas_jax"]
    assert native.SOURCE in (native.SOURCE.parents[1]).glob(pattern)
