"""A guard between a run and its vLLM server: whatever ends the run, every process of the server ends too.

vLLM's server is a tree of processes (API server, engine core, one worker per GPU) that survives a SIGKILL of whoever
started it and then keeps its GPU memory and its port. The guard is a small program of its own: it starts the server,
notices in two independent ways that the run is gone (the parent-death signal, and the end of the pipe on its standard
input), and then ends the tree, politely first. It adopts orphans of the tree, so nothing can slip out of it.

`server.py` starts it as `python guard.py COMMAND...` in a session of its own. Nothing heavy is imported,
so that it is there before anything else has loaded. Where there is no Linux, and so no prctl, the pipe is what is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

import psutil

# <linux/prctl.h>
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL; vLLM removes its shared memory and sockets in well under that
_POLL_SECONDS = 0.2


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def die_with_parent(signal_number: int = signal.SIGKILL) -> None:
    """Asks the kernel to send this process a signal when the thread that started it ends. Linux only, else nothing."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def die_with_launcher() -> None:
    """Ends this training process when `accelerate launch`, which started it, is gone: nobody would end it later."""
    if "ACCELERATE_MIXED_PRECISION" in os.environ:  # set by every launcher of accelerate's
        die_with_parent(signal.SIGTERM)


def descendants_of(pid: int) -> list[int]:
    """Process numbers of children, grandchildren and so on, parents first."""
    try:
        return [process.pid for process in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def send_signal(pids: list[int], signal_number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal_number)


def _reap() -> bool:
    """Collects children that have ended; whether any are left."""
    try:
        while True:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return True
    except ChildProcessError:
        return False


def _end_all() -> None:
    """Ends every descendant: SIGTERM, then SIGKILL for what is still there after `_GRACE_SECONDS`."""
    send_signal(descendants_of(os.getpid()), signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_SECONDS
    while _reap() and time.monotonic() < deadline:
        time.sleep(0.05)
    while _reap():  # a killed parent hands its children to this process, so this comes to an end
        send_signal(descendants_of(os.getpid()), signal.SIGKILL)
        time.sleep(0.05)


def guard(command: list[str]) -> int:
    """Runs a command until it ends or standard input does; afterwards none of its processes is left.

    Returns:
        The command's exit code (above 128: a signal ended it), or 0 when it was ended because the run is over.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    code = 0
    try:
        die_with_parent(signal.SIGTERM)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        # Should this guard itself be killed, the server's first process goes with it.
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)
        while server.poll() is None:
            if select.select([sys.stdin], [], [], _POLL_SECONDS)[0] and not os.read(sys.stdin.fileno(), 1):
                raise KeyboardInterrupt
        code = server.returncode
    except KeyboardInterrupt:  # the run is gone, or asks for the end
        pass
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _end_all()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1:]))
