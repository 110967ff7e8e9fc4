"""Complete checkpoints.

A checkpoint counts from the moment its `manifest.json` is there, which is written last: every file's size, and what
neither transformers nor TRL keeps (how long the sample files were, how far the generation buffer was used up). One
without a manifest, or with a file that is missing or short, was cut off while it was written.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mini_r1.common import printable
from mini_r1.run_folder import MANIFEST, RUN_DESCRIPTION

# The thread that brings a checkpoint to the disk.
THREAD = "checkpoint"
# Files that a manifest does not answer for: itself, and what no resumed run reads.
_NOT_NEEDED = (MANIFEST, f"{MANIFEST}.new", "training_args.bin", "zero_to_fp32.py", "README.md")


def write_manifest(folder: Path, state: Mapping[str, Any]) -> None:
    """Declares a checkpoint complete: everything in it is on the disk, then `manifest.json` is, in one piece.

    Args:
        folder: the checkpoint; nothing may be written to it afterwards.
        state: kept in the manifest beside the list of files, JSON values.

    Raises:
        OSError: when the disk does not take it; the checkpoint is incomplete then.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in _NOT_NEEDED:
            files[path.relative_to(folder).as_posix()] = path.stat().st_size
            _sync(path)
    write_whole(folder / MANIFEST, json.dumps({**state, "written": time.time(), "files": files}, indent=1) + "\n")
    _sync(folder)


def wait_for_checkpoints() -> None:
    """Waits for checkpoints on their way to the disk; for exits that end threads."""
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join()


def write_whole(path: Path, text: str) -> None:
    """Writes a file that a later start depends on: after a crash there is the old one or the new one, never a part.

    Raises:
        OSError: when the disk does not take it.
    """
    draft = path.with_name(f"{path.name}.new")
    draft.write_text(text)
    _sync(draft)
    draft.replace(path)


def _sync(path: Path) -> None:
    """Waits until a file or folder is on the disk, so that a power cut does not undo what the manifest says."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot, such as some network ones
            raise
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """The contents of a JSON file, None when it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def read_description(folder: Path) -> dict[str, Any]:
    """The contents of a run folder's `run.json`; empty when there is none that can be read."""
    description = read_json(folder / RUN_DESCRIPTION)
    return description if isinstance(description, dict) else {}


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """A checkpoint's manifest; None when there is none that can be read."""
    manifest = read_json(folder / MANIFEST)
    sound = isinstance(manifest, dict) and isinstance(manifest.get("files"), dict)
    return manifest if sound and isinstance(manifest.get("step"), int) else None


def fault_in(folder: Path) -> str | None:
    """Why a checkpoint is incomplete, in a few words; None when it is complete."""
    manifest = read_manifest(folder)
    if manifest is None:
        return f"it has no {MANIFEST}, so it was cut off while it was written"
    for name, size in manifest["files"].items():
        shown = printable(str(name))
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"its {MANIFEST} names {shown}, which is outside of it"
        try:
            there = (folder / name).stat().st_size
        except (OSError, ValueError):
            return f"{shown} is missing"
        if there != size:
            return f"{shown} has {there} of {printable(str(size))} bytes"
    return None


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """The checkpoint folders of a run, complete or not, by step, in order."""
    found = {}
    for path in folder.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isascii() and number.isdigit() and path.is_dir():
            found[int(number)] = path
    return dict(sorted(found.items()))
