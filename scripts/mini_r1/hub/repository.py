"""The run's repository on the Hub: what it holds, whether this run may write there, and resuming from it."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub  # loads its parts when they are used
from huggingface_hub import errors

from mini_r1.common import HubError, RecipeError, first_line, printable
from mini_r1.recipe import Recipe
from mini_r1.recipe.arguments import HUB_EXTRAS
from mini_r1.run_folder import RUN_DESCRIPTION
from mini_r1.run_folder.manifest import fault_in, read_description
from mini_r1.run_folder.resume import HUB, Resume, run_name

logger = logging.getLogger(__name__)

NEWEST = "newest_checkpoint.json"  # the mark
# What `from_pretrained` needs; the rest of a checkpoint is for resuming.
MODEL_FILES = """*.safetensors *.safetensors.index.json config.json generation_config.json adapter_config.json
    tokenizer*.json *.jinja vocab.json merges.txt special_tokens_map.json added_tokens.json *.model""".split()
# What only a resumed run needs: several times the size of the model.
RESUME_FILES = """optimizer* scheduler.pt rng_state* global_step*/* generation_buffer_* latest
    pytorch_model_fsdp_0/*""".split()
# What a checkpoint from the Hub may consist of: all else may run code when it is loaded, as the pickles of DeepSpeed
# and of sharded FSDP states do. The .pt and .pth files here are read with torch's weights_only.
_HARMLESS = """*.safetensors *.json *.jinja *.model *.txt *.md *.png *.yaml .gitattributes optimizer.pt scheduler.pt
    scaler.pt rng_state*.pth generation_buffer_*.pt""".split()
# Pickles that nothing here reads (the first would hold the recipe's token), and unfinished files.
NEVER = ["training_args.bin", "zero_to_fp32.py", "*.new"]
RUN_FILES = ["README.md", "curve.png", "recipe.yaml", "run.json", "held_out.json"]
_EXTRA_FILES = [f"{folder}/*" for folder in HUB_EXTRAS.values()]


class Target:
    """The repository that a recipe names, where uploads go; errors of the Hub are raised.

    Attributes:
        id: `owner/name`, or `name` for the token's own account.
        branch: where the newest model goes.
        is_private: what it is, or becomes when it is made.
        exists, has_model, run, step: what `look` found there; run and step are those of the newest model, None where
            no run put one there.
    """

    def __init__(self, recipe: Recipe):
        self.api = huggingface_hub.HfApi(token=recipe.resolved["hub_token"])
        self.id: str = recipe.training.hub_model_id or Path(recipe.training.output_dir).name
        self.branch: str = recipe.training.hub_revision or "main"
        self.is_private = recipe.training.hub_private_repo is not False
        self.exists = self.has_model = False
        self.run: str | None = None
        self.step: int | None = None

    def make(self) -> None:
        """Makes it where it is missing."""
        self.id = self.api.create_repo(self.id, private=self.is_private, exist_ok=True).repo_id

    def look(self) -> None:
        """Finds out what it holds."""
        try:
            info = self.api.model_info(self.id)
        except errors.RepositoryNotFoundError:
            return
        self.exists, self.is_private = True, bool(info.private)
        self.has_model = any(matches(file.rfilename, MODEL_FILES) for file in info.siblings or [])
        self.run, self.step = self.read_mark()

    def read_mark(self) -> tuple[str, int] | tuple[None, None]:
        """The run and the step of the newest model; None where no run put one there."""
        try:
            mark = json.loads(self.read(NEWEST, self.branch))
            return str(mark["run"]), int(mark["step"])
        except (ValueError, KeyError, TypeError):  # others may write there
            return None, None

    def read(self, name: str, branch: str) -> bytes:
        """A file's content now, never from the cache; empty when it is not there."""
        try:
            return Path(self.api.hf_hub_download(self.id, name, revision=branch, force_download=True)).read_bytes()
        except (errors.RemoteEntryNotFoundError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
            return b""

    def refuse_others(self, mine: str | None) -> None:
        """Raises HubError when uploads of the run `mine` would overwrite what `look` found: another run or model."""
        if self.run is not None and self.run != mine:
            raise HubError(
                f"{self.id} holds another run up to step {self.step}: resume that one by --resume_from_checkpoint hub, "
                f"or choose another hub_model_id"
            )
        if self.run is None and self.has_model:
            raise HubError(f"{self.id} holds a model that is not this run's: choose another hub_model_id")


def uploads_each(recipe: Recipe) -> bool:
    """Whether every checkpoint is uploaded, and not the final model alone."""
    return bool(recipe.training.hub_strategy != "end")


def run_in(folder: Path) -> str | None:
    """The name of the run in a run folder."""
    return run_name(read_description(folder))


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a file's name matches one of the patterns; `*` stands for slashes, too."""
    return any(fnmatch(name, pattern) for pattern in patterns)


# --------------------------------------------------------------------------------------------------------------------
# Before the first step
# --------------------------------------------------------------------------------------------------------------------


def describe(recipe: Recipe, resume: Resume | None, ask: bool) -> tuple[str, Target | None]:
    """The Hub's line of the plan, and where uploads go when that could be found out.

    Raises:
        HubError: when the Hub refuses the token, or the repository holds something else.
    """
    if not recipe.resolved["push_to_hub"]:
        return "  Hub:        nothing is uploaded (push_to_hub: false)", None
    what = "each checkpoint as a revision of its own" if uploads_each(recipe) else "the final model"
    target = Target(recipe)
    if not ask:
        return f"  Hub:        uploads to {target.id}, {what}; the token is not checked", None
    if not _may_write(target):
        return f"  Hub:        cannot be reached now; uploads to {target.id} are tried until it can", None
    if not wants_hub(recipe):
        target.refuse_others(None if resume is None else run_in(Path(recipe.training.output_dir)))
    verb, there = ("uploads to", ", there already") if target.exists else ("makes", "")
    there += "" if target.step is None else f" with step {target.step}"
    kind = "private" if target.is_private else "public"
    return f"  Hub:        {verb} {target.id} ({kind}{there}); {what}", target


def _may_write(target: Target) -> bool:
    """Completes the target's `id` and looks at it; changes nothing there. False when the Hub cannot be reached now.

    Raises:
        HubError: when the token is missing or unknown, or may not write there; names what to change.
    """
    try:
        target.id = _writable_place(target.api.whoami(), target.id)
        target.look()
        if target.exists:
            target.api.auth_check(target.id, write=True)
    except (OSError, httpx.HTTPError) as error:
        if not _is_refusal(error):
            return False
        raise HubError(
            f"push_to_hub: this run may not write to {target.id} ({first_line(error)}): `hf auth login` with a token "
            f"that may, or push_to_hub: false"
        ) from error
    return True


def _writable_place(account: dict[str, Any], name: str) -> str:
    """`owner/name` of the repository. Raises HubError when `whoami` says that the token may not write there."""
    owner, _, name = name.rpartition("/")
    owner = owner or account["name"]
    if ((account.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
        raise HubError("push_to_hub: this token may only read: make one that may write, or push_to_hub: false")
    orgs = [org["name"] for org in account.get("orgs", []) if org.get("roleInOrg") != "read"]
    places = [account["name"], *orgs]
    if owner not in places:
        choices = ", ".join(f"{place}/{name}" for place in places)
        raise HubError(f"push_to_hub: {account['name']} may not write to {owner}: set hub_model_id to {choices}")
    return f"{owner}/{name}"


def make_repository(target: Target) -> None:
    """Makes the repository, private unless the recipe says otherwise. Raises HubError when that is refused."""
    try:
        target.make()
    except (OSError, httpx.HTTPError) as error:
        reason = f"{target.id} cannot be made ({first_line(error)})"
        if _is_refusal(error):
            raise HubError(f"push_to_hub: {reason}: use a token that may, or make it yourself") from error
        logger.warning("%s; uploads try again", reason)


def _is_refusal(error: Exception) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError)


# --------------------------------------------------------------------------------------------------------------------
# Resuming from the Hub
# --------------------------------------------------------------------------------------------------------------------


def wants_hub(recipe: Recipe) -> bool:
    """Whether the recipe asks to resume from the Hub: `resume_from_checkpoint: hub`, or `hub:step-50`."""
    return str(recipe.training.resume_from_checkpoint).partition(":")[0].lower() == HUB


def asked_checkpoint(recipe: Recipe) -> Path | None:
    """Where the checkpoint of `hub:step-N` will lie; None for the newest. Raises RecipeError for anything else."""
    asked = str(recipe.training.resume_from_checkpoint).partition(":")[2]
    if asked and not re.fullmatch(r"step-\d+", asked):
        raise RecipeError(f"resume_from_checkpoint: hub:{asked} names no step: write hub, or hub:step-50")
    return Path(recipe.training.output_dir, asked.replace("step-", "checkpoint-")) if asked else None


def fetch_checkpoint(recipe: Recipe) -> None:
    """Brings a run from the Hub into the run folder: its newest checkpoint or the one asked for, and its description.

    A checkpoint that is complete in the run folder is left as it is. A repository without a run brings nothing.

    Raises:
        HubError: when there is no such checkpoint, it cannot be fetched, or it may not be loaded.
    """
    goal, folder, source = asked_checkpoint(recipe), Path(recipe.training.output_dir), Target(recipe)
    try:
        if "/" not in source.id:
            source.id = f"{source.api.whoami()['name']}/{source.id}"
        run, step = source.read_mark()
        if run is None and goal is None:
            return logger.warning("%s holds no run yet: this one begins at step 0", source.id)
        if run is not None and run_in(folder) not in (None, run):
            raise HubError(f"{folder} holds another run than {source.id}: choose another --output_dir")
        goal = goal or folder / f"checkpoint-{step}"
        if fault_in(goal):
            _fetch(source, goal, recipe.hub.hub_trust_pickles)
    except (OSError, httpx.HTTPError) as error:
        what = f"{goal.name} of {source.id}" if goal else source.id
        raise HubError(f"resume_from_checkpoint: cannot fetch {what} from the Hub ({first_line(error)})") from error


def _fetch(source: Target, goal: Path, trusts_pickles: bool) -> None:
    """Brings the checkpoint `goal`, and what is missing of the run around it, unless it may run code when loaded."""
    folder, revision = goal.parent, goal.name.replace("checkpoint-", "step-")
    logger.info("fetching %s at %s", source.id, revision)
    draft = folder / f".fetching-{revision}"  # kept when the connection breaks: the next try resumes it
    others = [*RUN_FILES, *_EXTRA_FILES, NEWEST]
    source.api.snapshot_download(source.id, revision=revision, local_dir=draft, ignore_patterns=others)
    shutil.rmtree(draft / ".cache", ignore_errors=True)
    if problem := _problem_with(draft, trusts_pickles):
        shutil.rmtree(draft)
        raise HubError(f"resume_from_checkpoint: {source.id} at {revision} {problem}")
    if not (folder / RUN_DESCRIPTION).exists():
        wanted = [RUN_DESCRIPTION, *_EXTRA_FILES]
        source.api.snapshot_download(source.id, revision=source.branch, local_dir=folder, allow_patterns=wanted)
        shutil.rmtree(folder / ".cache", ignore_errors=True)
    shutil.rmtree(goal, ignore_errors=True)  # an incomplete one
    draft.rename(goal)


def _problem_with(draft: Path, trusts_pickles: bool) -> str | None:
    """Why a fetched checkpoint is not to be loaded: it is incomplete, or may run code when that is done."""
    if fault := fault_in(draft):
        return f"cannot be resumed: {fault} (hub_resume_state: false uploads the model only)"
    for path in sorted(draft.rglob("*")):
        if path.is_file() and not trusts_pickles and (path.parent != draft or not matches(path.name, _HARMLESS)):
            return (
                f"holds {printable(path.name)}, which may be a pickle and run code when it is loaded (as the shards of "
                f"DeepSpeed and FSDP are): add --hub_trust_pickles true if you trust everyone who can write there"
            )
    return None
