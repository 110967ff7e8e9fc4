"""Real process trees under the real guard: whatever ends first, nothing of the tree is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from conftest import ROOT, alive, wait_until
from mini_r1.generation.guard import descendants_of

pytestmark = pytest.mark.slow  # five seconds each: the grace that a process gets

GUARD = [sys.executable, "-I", str(ROOT / "scripts" / "mini_r1" / "generation" / "guard.py")]

# A server in miniature as far as processes go: a child and a grandchild, of which the latter left the process group
# and ignores SIGTERM, as the worst of workers would.
GRANDCHILD = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(600)
"""
CHILD = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {GRANDCHILD!r}], start_new_session=True)
time.sleep(600)
"""
TREE = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {CHILD!r}])
time.sleep(600)
"""


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*GUARD, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.fixture
def tree():
    guard = start([sys.executable, "-c", TREE])
    assert guard.stdout.readline() == "up\n"
    pids = [guard.pid, *descendants_of(guard.pid)]
    assert len(pids) == 4
    yield guard, pids
    for pid in pids:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    guard.wait()


def test_the_end_of_the_pipe_ends_the_tree(tree: tuple):
    guard, pids = tree
    guard.stdin.close()
    assert guard.wait(20) == 0
    assert not any(map(alive, pids))


def test_a_signal_to_the_guard_ends_the_tree(tree: tuple):
    guard, pids = tree
    os.kill(guard.pid, signal.SIGTERM)
    assert guard.wait(20) == 0
    assert not any(map(alive, pids))


def test_the_death_of_the_first_process_ends_the_others(tree: tuple):
    guard, pids = tree
    os.kill(pids[1], signal.SIGKILL)
    assert guard.wait(20) == 128 + signal.SIGKILL
    assert not any(map(alive, pids))


def test_sigkill_of_the_parent_ends_the_tree_while_a_fork_keeps_the_pipe_open():
    """As a data loader's worker would, so the parent-death signal must do by itself as well."""
    program = textwrap.dedent(f"""
        import os, subprocess, sys, time
        command = {[*GUARD, sys.executable, "-c", TREE]!r}
        guard = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        guard.stdout.readline()
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        print(guard.pid, flush=True)
        time.sleep(600)
    """)
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    tree = [pid, *descendants_of(pid)]
    (fork,) = [child for child in descendants_of(parent.pid) if child not in tree]
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(map(alive, tree)), 20, "the tree ends")
    os.kill(fork, signal.SIGKILL)


def test_sigkill_of_the_guard_takes_the_first_process_along(tree: tuple):
    guard, pids = tree
    guard.kill()
    guard.wait()
    wait_until(lambda: not alive(pids[1]), 10, "the first process ends")


def test_the_exit_code_is_the_commands():
    assert start([sys.executable, "-c", "raise SystemExit(7)"]).wait(20) == 7
    assert start([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]).wait(20) == 137
