"""Settings of the process, made before anything is computed."""

import os
import pathlib
import platform
import sys

_TUNABLES = "GLIBC_TUNABLES"
_VECTORS = "xla_cpu_prefer_vector_width"


def prepare_process() -> None:
    """All of the settings that must come before JAX is imported; may start Python again."""
    prefer_standard_library()
    hide_cache_warnings()
    use_wide_vectors()
    use_huge_pages()


def prefer_standard_library() -> None:
    """Lets what lies beside the program be found last.

    Python looks there first: a program named like a module of the standard library would
    stand in for it.
    """
    beside = os.path.dirname(os.path.abspath(sys.argv[0]))
    if beside in sys.path:
        sys.path.remove(beside)
        sys.path.append(beside)


def hide_cache_warnings() -> None:
    """Hides what XLA says of every program that it reads from the compilation cache.

    It takes two of LLVM's preferences for features that the CPU lacks and prints pages of
    errors. Programs that cannot go on are still told of.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def use_huge_pages() -> None:
    """Starts Python again with memory in huge pages, where the C library can do that.

    XLA takes and frees a step's memory anew at every step. In pages of 4 KiB the operating
    system has to hand out and clear tens of thousands of them each time; in huge pages a
    step on the CPU is 15 to 30 % faster. Only the environment at the start of a process
    can ask for it. Nothing happens if GLIBC_TUNABLES is set already.
    """
    if platform.libc_ver()[0] == "glibc" and _TUNABLES not in os.environ:
        os.environ[_TUNABLES] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def use_wide_vectors() -> None:
    """Lets XLA use vectors of 512 bits where the CPU has them; by itself it takes 256.

    Depthwise convolutions and quantizers are up to 1.4 times faster. What XLA_FLAGS says
    already stands.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if _VECTORS not in given:
        os.environ["XLA_FLAGS"] = f"{given} --{_VECTORS}=512".strip()


def cache_folder() -> pathlib.Path:
    """Where compiled code is kept from run to run: ~/.cache/qnas_jax."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "qnas_jax"


def use_compilation_cache() -> None:
    """Keeps compiled programs in `cache_folder`, unless JAX was told another folder.

    The second run of a config, and a run that is resumed, then start at once.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
