"""Errors that are reported in one line, without a traceback."""


class InputError(ValueError):
    """Something that the user gave cannot be used.

    The message is one line: the value, what is allowed, and the way out.
    """


class Diverged(RuntimeError):
    """A loss or a state is no longer finite; the message names whose, and the step."""


class ProcessLost(RuntimeError):
    """One of several processes is gone; the others cannot continue without it."""
