"""What every room shares: errors for users, how a program ends, text that is safe to print, ranks.

Imports nothing of ours.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Any, NoReturn


class UserError(Exception):
    """Something that the user can change; the message is one line: what is wrong, then the change to make."""


class RecipeError(UserError):
    """A value in the recipe or on the command line, or what it asks for on this machine."""


class DataError(UserError):
    """The puzzles cannot be used."""


def fail(message: str, code: int = 2) -> NoReturn:
    """Ends the program with an exit code and one line, printed by the first process of each node only."""
    if is_first_process():
        print(f"error: {masked(printable(' '.join(str(message).split())))}", file=sys.stderr, flush=True)
    raise SystemExit(code)


def say(*lines: str) -> None:
    """Prints lines, by the first process of each node only."""
    if is_first_process():
        print(*lines, sep="\n", flush=True)


def printable(text: str) -> str:
    """Model text with control characters escaped, so that showing a file can never drive a terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


_SECRET = re.compile(r"hf_[\w-]{6,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")


def masked(value: Any) -> Any:
    """A value, however nested, without tokens and passwords: by the names of keys, and by what looks like one."""
    if isinstance(value, dict):
        return {
            key: "***" if str(key).endswith(("token", "password", "api_key")) and isinstance(inner, str) and inner
            else masked(inner)
            for key, inner in value.items()
        }  # fmt: skip
    if isinstance(value, (list, tuple)):
        return [masked(inner) for inner in value]
    return _SECRET.sub("***", value) if isinstance(value, str) else value


def is_first_process() -> bool:
    """Whether this is the process of each node that speaks, as the launcher says."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def is_main_process() -> bool:
    """Whether this is the one process of all machines that writes what is written once."""
    return os.environ.get("RANK", "0") == "0"


def world_size() -> int:
    """How many processes train, as the launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))
