import importlib.metadata
import pathlib
import subprocess
import sys
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packaging.requirements import Requirement

from qnas_jax.run import platform

ROOT = pathlib.Path(__file__).parents[2]


def test_this_jax_does_not_have_the_cpu_miscompilation_of_jax_issue_39103():
    i = np.arange(32769, dtype=np.float32)
    x = np.stack((i, 0 * i, 0 * i), 1)

    def squares(rows):
        return jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))(rows)

    with jax.default_device(jax.devices("cpu")[0]):
        found = np.asarray(jax.jit(squares)(x))
    assert found[-1] == 2.0**30 and np.array_equal(found, i * i), (
        f"jax {jax.__version__} computes wrong numbers on the CPU (jax-ml/jax#39103): "
        f"{found[-1]:.0f} where 1073741824 is right; install another version of jax"
    )


def test_programs_do_not_stand_in_for_the_standard_library(tmp_path):
    """As launch/tools/profile_latency.py would; torch's optimizers import its namesake."""
    for name, text in (
        ("profile", "raise RuntimeError('this is not the standard library')"),
        ("beside", "found = True"),
        ("program", "from qnas_jax import platform\nplatform.prepare_process()\n"
         "import cProfile, beside\nprint(beside.found)\n"),
    ):  # fmt: skip
        (tmp_path / f"{name}.py").write_text(text)
    program = [sys.executable, str(tmp_path / "program.py")]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.parametrize("package", ["jax", "flax"])  # their pins have reasons: see there
def test_the_installed_version_is_one_that_pyproject_allows(package):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = next(r for r in map(Requirement, project["dependencies"]) if r.name == package)
    version = importlib.metadata.version(package)
    assert allowed.specifier.contains(version, prereleases=True), (
        f"{package} {version} is installed; pyproject.toml allows {allowed.specifier}"
    )


def _main(flags, environment):
    """What a script prints that asks for huge pages: the setting and its own arguments."""
    script = (
        "import os, sys; from qnas_jax import platform; platform.use_huge_pages();"
        "print(os.environ.get('GLIBC_TUNABLES'), sys.flags.optimize, *sys.argv[1:])"
    )
    command = [sys.executable, *flags, "-c", script, "--config", "a b"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(platform.platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_python_starts_again_with_huge_pages_and_the_same_arguments():
    assert _main(["-O"], {}) == "glibc.malloc.hugetlb=1 1 --config a b"


def test_tunables_that_are_set_are_left_alone():
    tunables = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}
    assert _main([], tunables) == "glibc.malloc.arena_max=2 0 --config a b"


def test_no_restart_where_the_c_library_has_no_tunables(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(platform.platform, "libc_ver", lambda: ("musl", "1.2"))
    monkeypatch.setattr(platform.os, "execv", lambda *_: pytest.fail("started again"))
    platform.use_huge_pages()
    assert "GLIBC_TUNABLES" not in platform.os.environ


def test_vectors_are_wide_unless_xla_flags_say_otherwise(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    platform.use_wide_vectors()
    platform.use_wide_vectors()
    given = platform.os.environ["XLA_FLAGS"]
    assert given == "--xla_dump_to=x --xla_cpu_prefer_vector_width=512"
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_prefer_vector_width=256")
    platform.use_wide_vectors()
    assert platform.os.environ["XLA_FLAGS"] == "--xla_cpu_prefer_vector_width=256"


def _cache_folder(monkeypatch, tmp_path, **environment):
    """Where programs are kept after `use_compilation_cache`, None where it set nothing."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        platform.use_compilation_cache()
        return jax.config.jax_compilation_cache_dir
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_programs_are_kept_in_the_users_cache(monkeypatch, tmp_path):
    assert _cache_folder(monkeypatch, tmp_path) == f"{tmp_path}/.cache/qnas_jax"
    xdg = _cache_folder(monkeypatch, tmp_path, XDG_CACHE_HOME=f"{tmp_path}/other")
    assert xdg == f"{tmp_path}/other/qnas_jax"


def test_a_cache_that_jax_was_told_of_is_left_alone(monkeypatch, tmp_path):
    told = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    assert _cache_folder(monkeypatch, tmp_path, **told) is None
