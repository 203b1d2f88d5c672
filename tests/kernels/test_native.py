import concurrent.futures
import os
import subprocess
import sys
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cpu
from qnas_jax.kernels import native


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """As if nothing had been compiled yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native.platform, "machine", lambda: "x86_64")
    # JAX takes each function once in a process, and other tests use it.
    monkeypatch.setattr(native.jax.ffi, "register_ffi_target", lambda *_, **__: None)
    return native.missing.__wrapped__


def _script(folder, text):
    file = folder / "with space" / "cc"
    file.parent.mkdir(exist_ok=True)
    file.write_text("#!/bin/sh\n" + text)
    file.chmod(0o755)
    return f"'{file}'"


def test_without_a_compiler_that_is_the_reason(fresh, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(native.shutil, "which", lambda _: None)
    assert fresh(True) == "there is no C++ compiler (c++)"


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
def test_a_compiler_that_fails_is_the_reason(fresh, monkeypatch, tmp_path, text, said):
    monkeypatch.setenv("CXX", _script(tmp_path, text))
    monkeypatch.setattr(native, "COMPILE_S", 1)
    reason = fresh(True)
    assert said in reason and "\n" not in reason


def test_a_compiler_that_is_not_there_is_the_reason(fresh, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    assert "No such file or directory: 'no-such-compiler'" in fresh(True)


def test_where_it_must_not_compile_no_compiler_is_started(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", _script(tmp_path, f"touch '{tmp_path}/started'; exit 1"))
    reason = fresh(False)
    assert reason.startswith("kernels.compile=never, and nothing is compiled in ")
    assert not (tmp_path / "started").exists()
    fresh(True)
    assert (tmp_path / "started").exists()


@cpu.needs_vnni
def test_what_an_earlier_run_compiled_is_used_without_a_compiler(fresh, monkeypatch):
    cpu.compiler()
    assert fresh(True) == ""
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert fresh(False) == ""


@cpu.needs_vnni
@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:9999] + bytes(len(b) - 9999),
        pytest.param(lambda b: b[:4096], marks=pytest.mark.slow),
    ],
    ids=["zeros", "cut"],
)
def test_a_damaged_library_is_compiled_anew(fresh, tmp_path, damage):
    """Loaded as it is, it would end the process."""
    cpu.compiler()
    file = native._compiled(tmp_path, True)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert not native._is_whole(file)
    with pytest.raises(FileNotFoundError, match=r"kernels\.compile=never"):
        native._compiled(tmp_path, False)
    assert native._compiled(tmp_path, True) == file
    assert native._is_whole(file) and len(file.read_bytes()) == len(whole)


@cpu.needs_vnni
def test_without_a_cache_folder_it_is_compiled_for_this_process_alone(monkeypatch, tmp_path):
    cpu.compiler()
    monkeypatch.setattr(native, "cache_folder", lambda: None)
    monkeypatch.setattr(native.tempfile, "tempdir", str(tmp_path))
    library = native._loaded(True)
    assert all(library[name] for name in native.FUNCTIONS)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match=r"kernels\.compile=never"):
        native._loaded(False)


@cpu.needs_vnni
def test_where_it_can_be_compiled_it_is():
    cpu.compiler()
    assert native.missing(True) == ""


def test_other_cpus_are_left_alone(fresh, monkeypatch):
    monkeypatch.setattr(native, "_loaded", lambda _: pytest.fail("compiled"))
    for machine in ("arm64", "aarch64"):
        monkeypatch.setattr(native.platform, "machine", lambda machine=machine: machine)
        assert fresh(True) == f"{machine} CPUs have no AVX-512 VNNI"


def test_a_cpu_without_the_instructions_is_the_reason(fresh, monkeypatch):
    monkeypatch.setattr(native, "_loaded", lambda _: None)
    monkeypatch.setattr(native, "_runs_here", lambda _: False)
    assert fresh(True) == "this CPU has no AVX-512 VNNI"


@cpu.needs_vnni
def test_it_is_compiled_once_for_all_processes(tmp_path):
    cpu.compiler()
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    program = "from qnas_jax.kernels import native; assert native.missing(True) == ''"
    program = [sys.executable, "-c", program]
    running = [subprocess.Popen(program, env=environment) for _ in range(3)]
    assert [process.wait(timeout=300) for process in running] == [0, 0, 0]
    (made,) = (tmp_path / "qnas_jax").iterdir()
    before = made.stat().st_mtime_ns
    subprocess.run(program, env=environment, check=True)
    assert made.stat().st_mtime_ns == before


WITHOUT_MEMORY = """
import resource, numpy as np, jax, jax.numpy as jnp
from qnas_jax.kernels import native
assert native.missing(True) == ""
w = jnp.asarray(native.pack_depthwise(np.ones((1, 1, 1), np.float32)))
x = jnp.zeros((1, 2_000_000, 1, 1), jnp.uint8)  # whose statistics by row take 768 MB
run = jax.jit(lambda x: native.depthwise_statistics(x, w, 1, 1)).lower(x).compile()
pages = int(open("/proc/self/statm").read().split()[0])
most = pages * resource.getpagesize() + 200 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (most, most))
run(x).block_until_ready()
"""


@cpu.needs_vnni
def test_a_lack_of_memory_is_named():
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_MEMORY], capture_output=True, text=True, check=False
    )
    last = process.stderr.splitlines()[-1]
    assert last.endswith("RESOURCE_EXHAUSTED: an int8 convolution lacks memory")


@cpu.needs_vnni
def test_many_calls_at_once_give_what_each_gives_alone():
    """They share the threads that they spread their work over."""
    assert native.missing(True) == ""
    rng = np.random.default_rng(0)
    w = jnp.asarray(native.pack_depthwise(np.float32(rng.integers(-127, 128, (7, 7, 40)))))
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
    patterns = project["tool"]["setuptools"]["package-data"]["qnas_jax"]
    held = [file for pattern in patterns for file in native.SOURCE.parents[1].glob(pattern)]
    assert {native.SOURCE, *native.HEADERS} <= set(held)
    assert set(native.SOURCE.parent.glob("*.h")) == set(native.HEADERS)
