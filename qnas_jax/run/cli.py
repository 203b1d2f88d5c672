"""What all programs in `launch/` share: flags, log lines, and errors in one line."""

import contextlib
import dataclasses
import difflib
import io
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from qnas_jax.errors import Diverged, InputError, ProcessLost
from qnas_jax.run import disk, paths, preempt

# Exit codes. The last two are what shells make of SIGINT and SIGTERM: 128 + the signal.
INPUT_ERROR, DIVERGED, PROCESS_LOST, INTERRUPTED, TERMINATED = 2, 3, 4, 130, 143


def start(main: Callable[[], None]) -> None:
    """Parses the flags and calls `main`; prints an error of the user in one line."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # paths may have other letters
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("qnas_jax")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    app.run(lambda _: guarded(main), flags_parser=_parse)


def define_run_flags() -> None:
    """Defines the flags of every program that works on a run: --config and --workdir."""
    config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder of the run; by default runs/CONFIG.")
    flags.mark_flag_as_required("config")


def run_flags() -> tuple[Any, pathlib.Path]:
    """Returns the config, checked, and the folder of the run.

    Raises:
      InputError: The config file is missing or has no config, or a setting cannot be used.
    """
    path = config_flags.get_config_filename(flags.FLAGS["config"])
    given = _checkable(flags.FLAGS.config, path)
    given.check()
    workdir = flags.FLAGS.workdir
    if workdir is None:
        workdir = f"runs/{pathlib.Path(path).stem}"
    return given, paths.folder("--workdir", workdir)


def _checkable(value: Any, path: str) -> Any:
    """Returns a dataclass that has `check()`."""
    if dataclasses.is_dataclass(value) and hasattr(value, "check"):
        return value
    reason = getattr(value, "_error", None) or f"get_config() gives a {type(value).__name__}"
    if not pathlib.Path(path).is_file():
        reason = "no such file"
    raise InputError(f"--config={path}: cannot be used ({reason})")


def settings(config: Any) -> list[str]:
    """Returns all settings of a config, as written after `--config.`; [] if it is none."""
    if not dataclasses.is_dataclass(config):
        return []
    found = []
    for field in dataclasses.fields(config):
        section = getattr(config, field.name)
        inner = dataclasses.fields(section) if dataclasses.is_dataclass(section) else ()
        found += [f"{field.name}.{f.name}" for f in inner] or [field.name]
    return found


def unknown_setting(key: str, known: Sequence[str]) -> InputError:
    """Returns the error for a setting that does not exist."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    hint = f"; did you mean config.{near[0]}?" if near else ""
    return InputError(f"config.{key}: no such setting{hint}")


def guarded(main: Callable[[], None]) -> None:
    """Calls `main`; prints an error of the user in one line."""
    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax also raises what it logs
    try:
        with preempt.raising():
            main()
    except InputError as error:
        _leave(str(error), INPUT_ERROR)
    except Diverged as error:
        _leave(str(error), DIVERGED)
    except ProcessLost as error:
        _leave(str(error), PROCESS_LOST)
    except KeyboardInterrupt:
        _leave("stopped; the same command resumes it", INTERRUPTED)
    except preempt.Stopped as error:
        _leave(f"{error}; the same command resumes it", TERMINATED)
    except Exception as error:
        found = error if isinstance(error, OSError) else disk.fault(error)
        if found is None or not (found is error or found.errno in disk.FULL):
            raise
        file = f"{found.filename2 or found.filename}: " if found.filename else ""
        room = "; make room, then the same command resumes it" if found.errno in disk.FULL else ""
        _leave(f"{file}{found.strerror or found}{room}", INPUT_ERROR)


def _leave(message: str, code: int) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError):  # closed by the shell, or a broken pipe
            stream.flush()
    os._exit(code)  # at a regular exit, libraries may fail for the same reason, with long messages


def _parse(argv: list[str]) -> list[str]:
    argv = _with_home(argv)
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, SyntaxError, TypeError, ValueError) as error:
        known = settings(_config_in(argv))
        for argument in argv[1:] if known else ():
            key = argument.lstrip("-").partition("=")[0]
            if key.startswith("config.") and key[7:] not in known:
                _leave(str(unknown_setting(key[7:], known)), INPUT_ERROR)
        _leave(str(error.args[0] if error.args else error), INPUT_ERROR)
    if len(rest) > 1:
        _leave(f"{rest[1]!r}: not understood; settings are given as --NAME=VALUE", INPUT_ERROR)
    return rest


def _config_in(argv: list[str]) -> Any:
    """Returns the config that the arguments name, without their settings; None if it fails."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, given, path = argument.partition("=")
        if name in ("--config", "-config"):
            with contextlib.suppress(Exception):  # a config is a program of the user's
                return flags.FLAGS["config"].parser.parse(path if given else following)
    return None


def _with_home(argv: list[str]) -> list[str]:
    """Returns the arguments with ~ replaced in --config, which parsing them reads."""
    found = []
    for argument in argv:
        name, given, path = argument.partition("=")
        if given and name in ("--config", "-config"):
            argument = f"{name}={paths.expanded('--config', path)}"
        elif found and found[-1] in ("--config", "-config"):
            argument = paths.expanded("--config", argument)
        found.append(argument)
    return found
