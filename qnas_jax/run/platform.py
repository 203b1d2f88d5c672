"""Settings of the process, made before a program is imported."""

import importlib
import logging
import os
import pathlib
import platform
import sys
import types

from qnas_jax.errors import InputError

logger = logging.getLogger(__name__)

_TUNABLES = "GLIBC_TUNABLES"
_VECTORS = "xla_cpu_prefer_vector_width"

_OFF, _ON = ("0", "false", "off", "no", "n", "f"), ("1", "true", "on", "yes", "y", "t")
# JAX's own switches that change the numbers of a run, or stop it at code that is correct. The
# first of the allowed values is JAX's default.
_SWITCHES = {
    "JAX_ENABLE_X64": _OFF,
    "JAX_EXPLICIT_X64_DTYPES": ("warn",),
    "JAX_DEFAULT_MATMUL_PRECISION": ("default",),
    "JAX_DISABLE_MOST_OPTIMIZATIONS": _OFF,
    "JAX_DEFAULT_PRNG_IMPL": ("threefry2x32",),
    "JAX_THREEFRY_PARTITIONABLE": _ON,
    "JAX_RANDOM_SEED_OFFSET": ("0",),
    "JAX_ENABLE_CUSTOM_PRNG": _OFF,
    "JAX_LEGACY_PRNG_KEY": ("allow", "warn"),
    "JAX_NUMPY_DTYPE_PROMOTION": ("standard",),
    "JAX_NUMPY_RANK_PROMOTION": ("allow", "warn"),
    "JAX_DISABLE_JIT": _OFF,
    "JAX_DEBUG_NANS": _OFF,
    "JAX_DEBUG_INFS": _OFF,
    "JAX_DEBUG_KEY_REUSE": _OFF,
    "JAX_CHECK_TRACER_LEAKS": _OFF,
    "JAX_TRANSFER_GUARD": ("allow", "log"),
    "JAX_TRANSFER_GUARD_HOST_TO_DEVICE": ("allow", "log"),
    "JAX_TRANSFER_GUARD_DEVICE_TO_DEVICE": ("allow", "log"),
    "JAX_TRANSFER_GUARD_DEVICE_TO_HOST": ("allow", "log"),
    "JAX_NO_TRACING": _OFF,
    "JAX_NO_EXECUTION": _OFF,
}


def prepared(module: str) -> types.ModuleType:
    """Imports a program after all of the settings that must come before JAX.

    The only way in which programs are started. Python may start again for a setting. Where one
    cannot be used, the process ends with one line and exit code 2.

    Args:
      module: The program's full name, e.g. "qnas_jax.programs.pick".

    Returns:
      The imported module.
    """
    hide_cache_warnings()
    try:
        check_switches()
        use_wide_vectors()
        keep_warnings_harmless()
        use_huge_pages()
        try_switches()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    return importlib.import_module(module)


def check_switches() -> None:
    """Refuses JAX's own switches that would change numbers or end a run halfway.

    Raises:
      InputError: One of them is not at its default.
    """
    for name in _SWITCHES.keys() & os.environ.keys():
        given, allowed = os.environ[name], _SWITCHES[name]
        if given.lower() not in allowed:
            rule = f"must be {allowed[0]}, or a run stops halfway or gives other numbers"
            raise InputError(f"{name}={given}: {rule}; unset it")


def try_switches() -> None:
    """Lets JAX read its own switches, which it does when it is imported, if there are any.

    Raises:
      InputError: JAX refuses one.
    """
    given = sorted(name for name in os.environ if name.startswith("JAX_"))
    if not given:
        return  # a program that needs no JAX starts sooner
    try:
        import jax  # noqa: F401
    except ValueError as error:
        refused = f"JAX refuses one of these ({error})"
        raise InputError(f"{', '.join(given)}: {refused}; unset it") from None


def hide_cache_warnings() -> None:
    """Hides XLA's warnings about every program that it reads from the compilation cache.

    XLA mistakes two of LLVM's preferences for features that the CPU lacks and prints pages of
    errors. Fatal errors are still printed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def use_huge_pages() -> None:
    """Starts Python again with memory in huge pages, where the C library can do that.

    XLA allocates and frees a step's memory at every step. With pages of 4 KiB the operating
    system must map and clear tens of thousands of pages each time; with huge pages a step on
    the CPU is 15 to 30 % faster. Only the environment at the start of a process can ask for
    them. Nothing happens if GLIBC_TUNABLES is already set.
    """
    if platform.libc_ver()[0] == "glibc" and _TUNABLES not in os.environ:
        os.environ[_TUNABLES] = "glibc.malloc.hugetlb=1"
        _start_again()


def keep_warnings_harmless() -> None:
    """Starts Python again where PYTHONWARNINGS turns warnings into errors.

    Otherwise the first warning in any library, e.g. of a deprecation, would end a run.
    """
    given = os.environ.get("PYTHONWARNINGS", "").split(",")
    kept = [rule for rule in given if not rule.strip().startswith("e")]
    if kept != given:
        os.environ["PYTHONWARNINGS"] = ",".join(kept)
        _start_again()


def _start_again() -> None:
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def use_wide_vectors() -> None:
    """Lets XLA use vectors of 512 bits where the CPU has them; its default is 256.

    Depthwise convolutions and quantizers are up to 1.4 times faster. The flags in XLA_FLAGS,
    or in the file that it names, are kept.

    Raises:
      InputError: The file cannot be read.
    """
    given = os.environ.get("XLA_FLAGS", "").strip()
    if given and not given.startswith("-"):  # XLA, too, takes this for a file
        given = _flags_of(given)
    if _VECTORS not in given:
        os.environ["XLA_FLAGS"] = f"--{_VECTORS}=512 {given}".strip()


def _flags_of(file: str) -> str:
    try:
        return os.fsdecode(pathlib.Path(file).read_bytes()).strip()
    except (OSError, ValueError) as error:
        raise InputError(
            f"XLA_FLAGS={file}: must be flags, which begin with --, or a file of them ({error})"
        ) from None


def cache_folder() -> pathlib.Path | None:
    """The folder where compiled code is kept between runs: ~/.cache/qnas_jax.

    None if there is no home folder (a container with its own user) or it cannot be written.
    """
    given = pathlib.Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME", "")))
    base = given if given.is_absolute() else pathlib.Path(os.path.expanduser("~/.cache"))
    if not base.is_absolute():
        return None
    folder = base / "qnas_jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def use_compilation_cache() -> None:
    """Keeps compiled code in `cache_folder`, unless JAX_COMPILATION_CACHE_DIR names a folder.

    The second run of a config, and a run that is resumed, then need not compile again.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    if folder := cache_folder():
        jax.config.update("jax_compilation_cache_dir", str(folder))
    else:
        logger.warning("compiled code is not kept: no cache folder can be written (set HOME)")
