import importlib.metadata
import os
import pathlib
import pwd
import subprocess
import sys
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packaging.requirements import Requirement

from qnas_jax.errors import InputError
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
        "import os, sys; from qnas_jax.run import platform; platform.use_huge_pages();"
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
    assert given == "--xla_cpu_prefer_vector_width=512 --xla_dump_to=x"
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_prefer_vector_width=256")
    platform.use_wide_vectors()
    assert platform.os.environ["XLA_FLAGS"] == "--xla_cpu_prefer_vector_width=256"


def test_xla_flags_may_be_a_file_of_flags(monkeypatch, tmp_path):
    """XLA takes them from a file where the text begins with no dash."""
    file = tmp_path / "flags of mine"
    file.write_text("\n--xla_dump_to=x\n--xla_dump_hlo_as_text\n")
    monkeypatch.setenv("XLA_FLAGS", str(file))
    platform.use_wide_vectors()
    given = platform.os.environ["XLA_FLAGS"].split()
    assert given[1:] == ["--xla_dump_to=x", "--xla_dump_hlo_as_text"]
    assert given[0] == "--xla_cpu_prefer_vector_width=512"
    file.write_text("--xla_cpu_prefer_vector_width=256")
    monkeypatch.setenv("XLA_FLAGS", str(file))
    platform.use_wide_vectors()
    assert platform.os.environ["XLA_FLAGS"] == str(file), "what it says stays"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("JAX_ENABLE_X64", "1", "JAX_ENABLE_X64=1: must be 0, or a run stops halfway or gives"),
        ("JAX_ENABLE_X64", "maybe", "JAX_ENABLE_X64=maybe: must be 0"),
        ("JAX_NUM_CPU_DEVICES", "two", "JAX_NUM_CPU_DEVICES: JAX refuses one of these"),
        ("XLA_FLAGS", "/no/file", "XLA_FLAGS=/no/file: must be flags, which begin with --, or"),
    ],
)
def test_what_the_environment_asks_for_in_vain_is_said_in_a_line(name, value, message):
    """By every program; this one is the quickest."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), name: value}
    program = [sys.executable, "-m", "qnas_jax", "fit_devices"]
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert line.startswith(f"error: {message}")


@pytest.mark.parametrize("name", sorted(platform._SWITCHES))
def test_switches_of_jax_that_change_a_run_are_refused(monkeypatch, name):
    for allowed in platform._SWITCHES[name]:
        monkeypatch.setenv(name, allowed.upper())
        platform.check_switches()
    monkeypatch.setenv(name, "another")
    with pytest.raises(InputError, match=f"{name}=another: must be "):
        platform.check_switches()
    assert name.lower() in jax.config.values, "JAX has it"


def test_nothing_is_imported_before_its_process_is_prepared(tmp_path):
    """JAX among it: it reads its switches, and sets some, when it is imported."""
    (tmp_path / "program.py").write_text("import os; print(os.environ['TF_CPP_MIN_LOG_LEVEL'])")
    script = (
        "import sys; from qnas_jax.run import platform; import qnas_jax.__main__; "
        "print({'jax', 'numpy'} & set(sys.modules)); platform.prepared('program')"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # set by JAX in this process
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-2:] == ["set()", "3"], done.stderr


def test_warnings_of_libraries_end_no_program():
    script = (
        "import os, sys, warnings; from qnas_jax.run import platform; "
        "platform.keep_warnings_harmless(); "
        "print(os.environ['PYTHONWARNINGS'], *sys.argv[1:]); warnings.warn('x')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error,ignore:z"}
    command = [sys.executable, "-c", script, "a b"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "ignore:z a b\n"), done.stderr


@pytest.mark.parametrize("simulated", ["sys.platform = 'win32'", "sys.modules['fcntl'] = None"])
def test_windows_is_refused_in_a_line(simulated):
    """Programs import the package before all else; it has no locks of files there."""
    command = [sys.executable, "-c", f"import sys; {simulated}; import qnas_jax"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: qnas_jax runs on Linux and macOS; on Windows use WSL\n"


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


def test_without_a_home_or_in_a_folder_that_is_none_nothing_is_kept(monkeypatch, tmp_path, caplog):
    """Containers have users of any number: without a passwd entry, without HOME."""
    (tmp_path / "file").touch()
    in_file = {"XDG_CACHE_HOME": f"{tmp_path}/file"}
    assert _cache_folder(monkeypatch, tmp_path, **in_file) is None
    assert "compiled code is not kept" in caplog.text
    relative = _cache_folder(monkeypatch, tmp_path, XDG_CACHE_HOME="here")
    assert relative == f"{tmp_path}/.cache/qnas_jax", "as the XDG specification has it"
    with monkeypatch.context() as patch:
        patch.setattr(platform.os, "access", lambda *_: False)
        assert _cache_folder(patch, tmp_path) is None

    def nobody(_):
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert platform.cache_folder() is None


def test_the_systems_are_those_that_are_not_refused():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    systems = {c.split(" :: ")[-1] for c in project["classifiers"] if c.startswith("Operating")}
    assert systems == {"Linux", "MacOS"}
