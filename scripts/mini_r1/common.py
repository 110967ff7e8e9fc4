"""What every room shares: errors for users, how a program ends, recipe keys, text that is safe to print, ranks.

Imports nothing of ours.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any, NoReturn


class UserError(Exception):
    """Something that the user can change; the message is one line: what is wrong, then the change to make."""


class RecipeError(UserError):
    """A value in the recipe or on the command line, or what it asks for on this machine."""


class DataError(UserError):
    """The puzzles cannot be used."""


class RunError(UserError):
    """A run folder, a checkpoint or a model cannot be used as asked."""


class DiskError(UserError):
    """A disk does not take what a program writes."""


class HubError(UserError):
    """The Hub refuses what was asked of it."""


class ServerError(UserError):
    """The vLLM server cannot be used (any more); raised on every rank at once."""


class GuardError(UserError):
    """A guard stops the run; raised on every rank at once.

    Args:
        message: one sentence.
        is_sound: whether the weights are still worth saving.
    """

    def __init__(self, message: str, *, is_sound: bool = True):
        super().__init__(message)
        self.is_sound = is_sound


# What libraries raise for a value, a file or a package that they cannot use.
LIBRARY_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
    OSError,
    RuntimeError,  # NotImplementedError, and torch's own
    AssertionError,
)


# --------------------------------------------------------------------------------------------------------------------
# Programs
# --------------------------------------------------------------------------------------------------------------------


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser whose description is a module's docstring and whose errors are one line. Raises RecipeError."""

    def __init__(self, description: str | None):
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=raw, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise RecipeError(message)


def run_cli(main: Callable[[list[str]], None], *, abandon: Callable[[], bool] = lambda: False) -> NoReturn:
    """Runs a script's `main` and ends the program: exit code 0, 1 (refused or failed) or 130 (Ctrl-C).

    Anything but a UserError is a bug and shows its traceback.

    Args:
        main: takes the command line without the program's name.
        abandon: whether threads are at work that the program must not wait for.
    """
    code = 0
    try:
        main(sys.argv[1:])
    except UserError as error:
        code = report(error)
    except KeyboardInterrupt:
        code = report("interrupted", 130)
    if abandon():
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def report(error: UserError | str, code: int = 1) -> int:
    """Prints an error's one line, by the first process of each node only; returns the exit code."""
    if is_first_process():
        print(f"error: {masked(printable(' '.join(str(error).split())))}", file=sys.stderr, flush=True)
    return code


def refuse_filled(folder: Path) -> None:
    """Raises DiskError unless a script can have this folder for what it writes: a new or an empty one."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise DiskError(f"{folder} is not empty: remove it, or name another folder with --output")


def say(*lines: str) -> None:
    """Prints lines, by the first process of each node only."""
    if is_first_process():
        print(*lines, sep="\n", flush=True)


# --------------------------------------------------------------------------------------------------------------------
# Recipe keys
# --------------------------------------------------------------------------------------------------------------------


def key(default: Any, text: str) -> Any:
    """A dataclass field that is a recipe key, with its default and its `--help`."""
    return field(default=default, metadata={"help": text})


def pairs(name: str, given: Any) -> dict[str, Any] | None:
    """The value of a recipe key that holds `name: value` pairs, which on the command line are JSON.

    Raises RecipeError when it is neither.
    """
    try:
        given = json.loads(given) if isinstance(given, str) else given
    except ValueError as error:
        raise RecipeError(f"{name} must be a JSON object on the command line: {error}") from error
    if not isinstance(given, dict | None):
        raise RecipeError(f"{name} must be `name: value` pairs, got {given!r}")
    return given


# --------------------------------------------------------------------------------------------------------------------
# Text and numbers
# --------------------------------------------------------------------------------------------------------------------


def printable(text: str) -> str:
    """Text with control characters escaped, so that showing it can never drive a terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
    """An error of a library in one line of at most 300 characters: its first line, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return printable(lines[0] if lines else type(error).__name__)[:300]


def one_line(error: BaseException) -> str:
    """All of a library's message in one line of at most 600 characters; its type where it says nothing."""
    text = printable(" ".join(str(error).split()))[:600]
    return f"{type(error).__name__}: {text}" if isinstance(error, LookupError) else text or type(error).__name__


_SECRET = re.compile(r"hf_[\w-]{6,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
_SECRET_KEYS = ("token", "password", "api_key", "api-key")


def masked(value: Any) -> Any:
    """A value, however nested, without tokens and passwords: by the names of keys, and by what looks like one."""
    if isinstance(value, dict):
        hidden = {key for key, inner in value.items() if str(key).endswith(_SECRET_KEYS) and inner}
        return {key: "***" if key in hidden and isinstance(v, str) else masked(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(inner) for inner in value]
    return _SECRET.sub("***", value) if isinstance(value, str) else value


def masked_command(argv: list[str]) -> list[str]:
    """A command line without the values of `--hub_token` and its like."""
    shown = list(argv)
    for i, word in enumerate(argv):
        flag, equals, _ = word.partition("=")
        if flag.startswith("--") and flag.endswith(_SECRET_KEYS):
            if equals:
                shown[i] = f"{flag}=***"
            elif i + 1 < len(argv):
                shown[i + 1] = "***"
    return shown


def is_number(value: Any) -> bool:
    """Whether a value from a JSON or YAML file is a number that arithmetic and curves can take (|x| <= 1e100)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e100


# --------------------------------------------------------------------------------------------------------------------
# Ranks, as the launcher says
# --------------------------------------------------------------------------------------------------------------------


def is_first_process() -> bool:
    """Whether this is the process of each node that speaks."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def is_main_process() -> bool:
    """Whether this is the one process of all machines that writes what is written once."""
    return os.environ.get("RANK", "0") == "0"


def world_size() -> int:
    """How many processes train."""
    return int(os.environ.get("WORLD_SIZE", "1"))
