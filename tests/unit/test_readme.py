"""Pages for people: what they print can be typed, what they name exists, and what stands in two places is the same."""

from __future__ import annotations

import re
import shlex
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from conftest import ROOT
from mini_r1.recipe.arguments import GuardArguments

README = ROOT / "README.md"
ROOMS = ROOT / "scripts" / "mini_r1"
PAGES = sorted(
    page
    for folder in (".", ".github", "receipes", "configs", "completion_samples", "tests", "scripts")
    for page in (ROOT / folder).glob("*.md" if folder == "." else "**/*.md")
)
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MOST_README_LINES = 230
# A path from the repository's root: a top-level folder and what follows. One that ends in a dash or a dot is cut off.
PATH = re.compile(r"(?<![\w./-])(?:scripts|receipes|configs|tests|completion_samples|\.github)/[\w./*<>-]*")


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands_of(page: Path) -> list[str]:
    """Lines of the `bash` blocks, continued ones joined, comments gone."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.join(shlex.split(line, comments=True)) for line in lines if shlex.split(line, comments=True)]


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


COMMANDS = [pytest.param(command, id=command[:70]) for page in PAGES for command in commands_of(page)]
PARSED = [c for c in COMMANDS if "scripts/" in c.values[0] and "--config " in c.values[0]]
every_page = pytest.mark.parametrize("page", PAGES, ids=named)


# ---- commands ----------------------------------------------------------------------------------------------------


def test_there_are_pages_and_commands():
    assert {README, ROOT / ".github" / "CONTRIBUTING.md", ROOMS / "generation" / "README.md"} <= set(PAGES)
    assert len(COMMANDS) > 25
    assert len(PARSED) > 8
    assert {"test", "train", "install"} <= TARGETS


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_printed_command_names_exists(command: str):
    words = shlex.split(command)
    for word in words:
        if word.endswith((".yaml", ".py", ".slurm")):
            assert (ROOT / word).exists(), word
    if words[0] == "make":
        assert words[1] in TARGETS


@pytest.mark.slow
@pytest.mark.parametrize("command", PARSED)
def test_the_keys_of_a_printed_command_are_known(command: str):
    from mini_r1 import countdown, reasoning_gym
    from mini_r1.recipe.parsing import read_draft

    words = shlex.split(command)
    (script,) = [i for i, word in enumerate(words) if word.startswith("scripts/")]
    task = (reasoning_gym if words[script] == "scripts/run_reasoning_gym.py" else countdown).TASK
    assert read_draft([word for word in words[script + 1 :] if word != "--print"], task).training.output_dir


@every_page
def test_make_targets_in_running_text_exist(page: Path):
    assert set(re.findall(r"`make ([a-z-]+)", page.read_text())) <= TARGETS


def test_workflows_call_targets_that_exist():
    called = set()
    for workflow in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(workflow.read_text())["jobs"].values():
            runs = [step["run"] for step in job["steps"] if "run" in step]
            called |= {word for run in runs if run.startswith("make ") for word in run.split()[1:]}
    assert {"lint", "typecheck", "test-fast", "resolve", "test-all"} <= called <= TARGETS


# ---- paths and links ---------------------------------------------------------------------------------------------


@every_page
def test_paths_exist(page: Path):
    paths = [path for path in PATH.findall(page.read_text()) if not re.search(r"[*<>]|\.\.", path)]
    missing = [path for path in paths if not (ROOT / path.rstrip(".-")).exists()]
    assert not missing


@every_page
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        place, _, anchor = target.partition("#")
        found = (page.parent / place).resolve() if place else page
        assert found.exists(), target
        assert not anchor or anchor in headings(found), target


@every_page
def test_recipes_exist(page: Path):
    """Also those that are named without their ending, as run folders are."""
    for name in re.findall(r"(?<![\w-])(?:grpo|sft)-[a-z][\w.-]*\w", page.read_text()):
        stem = re.sub(r"\.(yaml|png|json)$", "", name)
        assert (ROOT / "receipes" / f"{stem}.yaml").exists(), name


def test_the_page_of_the_tests_names_files_that_exist():
    there = {path.name for path in (ROOT / "tests").rglob("*.py")}
    assert set(re.findall(r"\b\w+\.py\b", (ROOT / "tests" / "README.md").read_text())) <= there | {"run_r1_grpo.py"}


# ---- README ------------------------------------------------------------------------------------------------------


def test_readme_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= MOST_README_LINES
    assert [line for line in lines if len(line) > 120 and not line.startswith("|") and "](" not in line] == []


def the_house() -> set[Path]:
    """The files and folders that README's tree names, found by their indentation."""
    (tree,) = blocks(README, "text")
    found: set[Path] = set()
    above: list[tuple[int, Path]] = [(-1, ROOT)]
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        above = [(depth, folder) for depth, folder in above if depth < indent]
        for name in re.match(r"(?:[\w.]+(?:/|\.py)(?:  ?|$))+", line.lstrip())[0].split():
            found.add(above[-1][1] / name)
            if name.endswith("/"):
                above.append((indent, above[-1][1] / name))
    return found


def test_the_house_is_what_is_there():
    """Every name in the tree exists, and everything in scripts and in the rooms' folder has a name in the tree."""
    house = the_house()
    assert [path for path in house if not path.exists()] == []
    there = {path for folder in (ROOT / "scripts", ROOMS) for path in folder.iterdir()}
    unnamed = {path for path in there - house if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert unnamed <= {ROOMS / "__init__.py"}


# ---- what stands in two places -----------------------------------------------------------------------------------


def test_the_table_of_guards_has_every_key_and_its_default():
    rows = re.findall(r"^\| `(guard_\w+)` \| (\S+) \|", (ROOT / "receipes" / "README.md").read_text(), re.MULTILINE)
    assert {key: yaml.safe_load(default) for key, default in rows} == {
        field.name: field.default for field in fields(GuardArguments)
    }


def test_hooks_check_with_the_ruff_of_the_project():
    (ours,) = [line for line in PROJECT["project"]["optional-dependencies"]["dev"] if line.startswith("ruff")]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["additional_dependencies"] for hook in hooks] == [[ours]] * 2


def test_the_citation_has_the_project_s_version_and_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["project"]["version"], PROJECT["project"]["license"])
    (trl,) = [entry for entry in citation["references"] if entry["title"].startswith("TRL")]
    assert f"trl=={trl['version']}" in PROJECT["project"]["dependencies"]
