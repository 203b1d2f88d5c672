import concurrent.futures
import functools
import os
import shutil
import subprocess
import sys
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qnas_jax.kernels import int8, native

HAS_CPP = native._cpu_multiplies_bytes() and shutil.which("c++")
needs_cpp = pytest.mark.skipif(not HAS_CPP, reason="this CPU, or no compiler")


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """As if nothing had been compiled yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "_cpu_multiplies_bytes", lambda: True)
    return native.available.__wrapped__


def _script(folder, text):
    file = folder / "with space" / "cc"
    file.parent.mkdir(exist_ok=True)
    file.write_text("#!/bin/sh\n" + text)
    file.chmod(0o755)
    return f"'{file}'"


def test_without_a_compiler_it_is_said_once_and_floats_are_used(fresh, monkeypatch, caplog):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(native.shutil, "which", lambda _: None)
    assert not fresh()
    (line,) = caplog.messages
    assert line == (
        "no convolutions of bytes, so paths are scored several times more slowly: "
        "there is no C++ compiler (c++)"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("exit 3", "ended with 3: it said nothing"),
        ("echo >&2; exit 1", "ended with 1: it said nothing"),
        ("printf 'In file\\nx.h: error: no \\377\\n' >&2; exit 1", "1: x.h: error: no \ufffd"),
        ("kill -9 $$", "ended with -9"),
        ("exec sleep 60", "has not ended after 1 s"),
        ('for last; do :; done; : > "$last"', "file too short"),
    ],
)
def test_a_compiler_that_fails_is_told_of(fresh, monkeypatch, caplog, tmp_path, text, said):
    monkeypatch.setenv("CXX", _script(tmp_path, text))
    monkeypatch.setattr(native, "COMPILE_S", 1)
    assert not fresh()
    (line,) = caplog.messages
    assert line.startswith("no convolutions of bytes, so paths") and said in line


def test_a_compiler_that_is_not_there_is_told_of(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    assert not fresh()
    assert "No such file or directory: 'no-such-compiler'" in caplog.text


@needs_cpp
@pytest.mark.parametrize("damage", [lambda b: b[:4096], lambda b: b[:9999] + bytes(len(b) - 9999)])
def test_a_damaged_library_is_compiled_anew(fresh, tmp_path, damage):
    """Loaded as it is, it would end the process."""
    compiled = functools.partial(native._compiled, native._compiler(), tmp_path)
    file = compiled()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert not native._is_whole(file)
    assert compiled() == file
    assert native._is_whole(file) and len(file.read_bytes()) == len(whole)


@needs_cpp
def test_without_a_cache_folder_it_is_compiled_for_this_process_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "cache_folder", lambda: None)
    monkeypatch.setattr(native.tempfile, "tempdir", str(tmp_path))
    library = native._loaded(native._compiler())
    assert all(library[name] for name in native.FUNCTIONS)
    assert not list(tmp_path.iterdir())


@needs_cpp
def test_where_it_can_be_compiled_it_is():
    assert native.available()


def test_other_cpus_are_left_alone(monkeypatch, caplog):
    for machine in ("arm64", "aarch64"):
        monkeypatch.setattr(native.platform, "machine", lambda machine=machine: machine)
        assert not native._cpu_multiplies_bytes()
    assert not native.available.__wrapped__() and not caplog.messages
    monkeypatch.setattr(native, "available", lambda: False)
    assert int8.is_fast() == (jax.default_backend() != "cpu")


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
