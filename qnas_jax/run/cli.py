"""What all programs share: flags, help, log lines, exit codes, and errors in one line."""

import contextlib
import dataclasses
import difflib
import io
import logging
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from qnas_jax.errors import Diverged, InputError, ProcessLost
from qnas_jax.run import disk, paths, preempt

# Exit codes. The last two follow the shells' rule for SIGINT and SIGTERM: 128 + the signal.
INPUT_ERROR, DIVERGED, PROCESS_LOST, INTERRUPTED, TERMINATED = 2, 3, 4, 130, 143


def start(main: Callable[[], None], doc: str, module: str) -> None:
    """Parses the flags and calls `main`; reports the user's errors in one line.

    Args:
      main: The program's main function.
      doc: What `--help` prints before the flags.
      module: The module that defines the program's own flags.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path may have letters that it cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("qnas_jax")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    _fill_help(doc, module)
    app.run(lambda _: guarded(main), flags_parser=_parse)


def _fill_help(doc: str, module: str) -> None:
    """Lets `--help` print `doc`, the flags of `module` and those of `define_run_flags`.

    By itself absl prints the docstring and the flags of the file that Python was started with.
    """
    sys.modules["__main__"].__doc__ = f"{doc.rstrip()}\n"
    for name in (module, __name__):
        for flag in flags.FLAGS.get_flags_for_module(name):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def define_run_flags() -> None:
    """Defines the flags of every program that works on a run: --config and --workdir."""
    help_config = (
        "The config, a Python file such as configs/streets.py. --config.SECTION.NAME=VALUE "
        "changes one setting; the config.py of its system describes all of them."
    )
    config_flags.DEFINE_config_file("config", None, help_config, lock_config=True)
    flags.FLAGS["config"].default_as_str = None  # or --help gives 'None' as its default
    help_workdir = "The folder of the run. By default runs/NAME, for a config NAME.py."
    flags.DEFINE_string("workdir", None, help_workdir)
    flags.mark_flag_as_required("config")


def run_flags(*kinds: type) -> tuple[Any, pathlib.Path]:
    """Returns the config, checked, and the folder of the run.

    Args:
      kinds: The types of configs that the program takes; by default all that have `check()`.

    Raises:
      InputError: The config file is missing or has another config, or a setting cannot be used.
    """
    path = config_flags.get_config_filename(flags.FLAGS["config"])
    given = _config_of(flags.FLAGS.config, path, kinds)
    given.check()
    workdir = flags.FLAGS.workdir
    if workdir is None:
        workdir = f"runs/{pathlib.Path(path).stem}"
    return given, paths.folder("--workdir", workdir)


def _config_of(value: Any, path: str, kinds: tuple[type, ...]) -> Any:
    checks_itself = dataclasses.is_dataclass(value) and hasattr(value, "check")
    if isinstance(value, kinds) if kinds else checks_itself:
        return value
    error = getattr(value, "_error", None)
    reason = _in_file(error, path) or error or f"get_config() gives a {_kind(value)}"
    if not pathlib.Path(path).is_file():
        reason = "is a folder" if pathlib.Path(path).is_dir() else "no such file"
    raise InputError(f"--config={path}: cannot be used ({reason})")


def _kind(value: Any) -> str:
    """The type of a value in words; that of a config is named by its system."""
    kind = type(value)
    system = kind.__module__.removeprefix("qnas_jax.").removesuffix(".config")
    return f"config of {system}" if hasattr(value, "check") else kind.__name__


def settings(config: Any) -> list[str]:
    """Returns all settings of a config, as written after `--config.`; [] if it is not a config."""
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
    """Calls `main`; reports the user's errors in one line."""
    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax raises what it logs
    try:
        with preempt.raising():
            main()
    except (InputError, Diverged, ProcessLost) as error:
        leave(str(error), code_of(type(error)))
    except KeyboardInterrupt:
        leave("stopped; the same command resumes it", INTERRUPTED)
    except preempt.Stopped as error:
        leave(f"{error}; the same command resumes it", code_of(preempt.Stopped))
    except Exception as error:
        found = error if isinstance(error, OSError) else disk.fault(error)
        if found is None or not (found is error or found.errno in disk.FULL):
            raise
        file = f"{found.filename2 or found.filename}: " if found.filename else ""
        full = "; free some space and repeat the command" if found.errno in disk.FULL else ""
        leave(f"{file}{found.strerror or found}{full}", INPUT_ERROR)


def code_of(kind: type[BaseException]) -> int:
    """Returns the exit code of an error that is reported in one line."""
    kinds = (Diverged, DIVERGED), (ProcessLost, PROCESS_LOST), (preempt.Stopped, TERMINATED)
    return next((code for own, code in kinds if issubclass(kind, own)), INPUT_ERROR)


def leave(message: str, code: int) -> None:
    """Ends the program with a line on stderr and an exit code."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError):  # closed by the shell, or a broken pipe
            stream.flush()
    os._exit(code)  # exit handlers of libraries may fail for the same reason, with a traceback


def _parse(argv: list[str]) -> list[str]:
    try:
        argv = _with_home(argv)
        rest = flags.FLAGS(argv)
    except SystemExit:  # --help, for which absl has exit code 1
        raise SystemExit(0) from None
    except Exception as error:
        if reason := _in_file(error, _config_path(argv)):
            leave(f"--config: the file cannot be used ({reason})", INPUT_ERROR)
        if "has no attribute 'get_config'" in str(error):
            reason = "cannot be used (it has no get_config())"
            leave(f"--config={_config_path(argv)}: {reason}", INPUT_ERROR)
        kinds = (flags.Error, AttributeError, KeyError, SyntaxError, TypeError, ValueError)
        if not isinstance(error, kinds):
            reason = f"{type(error).__name__}: {error}"
            leave(f"--config: the file cannot be used ({reason})", INPUT_ERROR)
        known = settings(_config_in(argv))
        for argument in argv[1:] if known else ():
            key = argument.lstrip("-").partition("=")[0]
            if key.startswith("config.") and key[7:] not in known:
                leave(str(unknown_setting(key[7:], known)), INPUT_ERROR)
        leave(_reason(error), INPUT_ERROR)
    if len(rest) > 1:
        leave(f"{rest[1]!r}: not understood; settings are given as --NAME=VALUE", INPUT_ERROR)
    return rest


def _reason(error: Exception) -> str:
    """The message of an error of the flags; plainer than absl's where a flag is missing."""
    text = str(error.args[0] if error.args else error)
    if missing := re.match(r"flag --(\w+)=None: .* must have a value other than None", text):
        return f"--{missing[1]}: must be given; see --help"
    return text


def _config_path(argv: list[str]) -> str:
    """Returns the value of --config; "" if it is not given."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, given, path = argument.partition("=")
        if name in ("--config", "-config"):
            return path if given else following
    return ""


def _config_in(argv: list[str]) -> Any:
    """Returns the config that the arguments name, without their settings; None if it fails."""
    if path := _config_path(argv):
        with contextlib.suppress(Exception):  # a config file is a program, and may raise anything
            return flags.FLAGS["config"].parser.parse(path)
    return None


def _in_file(error: BaseException | None, path: str) -> str:
    """Returns `FILE:LINE: TYPE: text` of an error in the code of a config file.

    The line is the innermost one in the file itself, not in a module that it calls. Libraries
    wrap some errors, so the errors that led to this one are searched too. "" if none of them
    has passed through the file.
    """
    path, found = path.partition(":")[0], ""  # what follows is an argument of get_config()
    file = pathlib.Path(path).absolute()
    while path and error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if pathlib.Path(f.filename).absolute() == file]
        text = str(error)
        if isinstance(error, SyntaxError) and pathlib.Path(error.filename or "").absolute() == file:
            lines, text = [error.lineno], error.msg
        if lines:
            found = f"{path}:{lines[-1]}: {type(error).__name__}: {text}"
        error = error.__cause__ or error.__context__
    return found


def _with_home(argv: list[str]) -> list[str]:
    """The arguments with ~ replaced in --config, which is read while they are parsed."""
    found = []
    for argument in argv:
        name, given, path = argument.partition("=")
        if given and name in ("--config", "-config"):
            argument = f"{name}={paths.expanded('--config', path)}"
        elif found and found[-1] in ("--config", "-config"):
            argument = paths.expanded("--config", argument)
        found.append(argument)
    return found
