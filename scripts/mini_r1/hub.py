"""The Hub: may this run write there, uploads that never hold up training, and going on from what was uploaded.

Every checkpoint becomes a branch `step-N` with everything in it; `main` holds the newest model, its card and the run's
description. Checkpoints wait for their upload in `.hub-queue/` of the run folder, as hard links: `save_total_limit` may
remove the originals, and a run that was killed finds there what it still owes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import queue
import re
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mini_r1.common import RecipeError, printable
from mini_r1.run_folder import resume as resumption

logger = logging.getLogger(__name__)

QUEUE = ".hub-queue"
# On main: which step its model is of.
NEWEST = "newest_checkpoint.json"
# What `from_pretrained` needs; the rest of a checkpoint is for going on with the training.
MODEL_FILES = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json",
    "tokenizer*.json", "*.jinja", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model",
)  # fmt: skip
# What only a resumed run needs: several times the size of the model.
RESUME_FILES = ("optimizer*", "scheduler.pt", "rng_state*", "global_step*/*", "generation_buffer_*", "latest",
                "optimizer_0/*", "pytorch_model_fsdp_0/*")  # fmt: skip
# What a checkpoint from the Hub may consist of: all else may run code when it is loaded, as the pickles of DeepSpeed
# and of sharded FSDP states do. The .pt and .pth files here are read with torch's weights_only.
HARMLESS = (*MODEL_FILES, "*.json", "*.txt", "*.md", "*.png", "*.yaml", ".gitattributes", "optimizer.pt",
            "scheduler.pt", "scaler.pt", "rng_state*.pth", "generation_buffer_*.pt")  # fmt: skip
# Pickles that nothing here reads; the first would hold the recipe's token.
NEVER = ("training_args.bin", "zero_to_fp32.py", "*.new")
RUN_FILES = ("README.md", "curve.png", "recipe.yaml", "run.json", "held_out.json")
# TensorBoard's files and the samples, which go along where the recipe asks for them.
EXTRAS = {"tensorboard": "tensorboard", "completion_samples": "samples"}
# Seconds before the second try of an upload, doubled for each further one up to the largest.
FIRST_DELAY, LARGEST_DELAY = 2.0, 300.0
# Seconds without a byte after which a request to the Hub has failed.
SILENCE = 600.0
_THREAD = "hub-upload"
# More checkpoints than these do not wait: the oldest is given up, and named at the end.
MAX_WAITING = 4


@dataclass
class HubArguments:
    """What a recipe says about the Hub beyond TRL's `push_to_hub`, `hub_model_id`, `hub_strategy`, ..."""

    hub_checks: bool = field(default=True, metadata={"help": "Ask the Hub about model, token and target beforehand."})
    hub_extras: list[str] = field(
        default_factory=list,
        metadata={"help": "What goes along to the Hub: `tensorboard`, `completion_samples`, or both."},
    )
    hub_resume_state: bool = field(
        default=True,
        metadata={"help": "Upload optimizer and random states too, so that the run can go on from the Hub alone."},
    )
    hub_license: str | None = field(
        default=None, metadata={"help": "Licence on the model card, as the Hub abbreviates it: apache-2.0, mit, ..."}
    )
    hub_trust_pickles: bool = field(
        default=False,
        metadata={"help": "Go on from DeepSpeed checkpoints on the Hub, whose shards run code when they are loaded."},
    )
    hub_wait_minutes: float = field(
        default=60.0, metadata={"help": "How long the end of a run waits for uploads that are not done yet."}
    )


def check_values(values: Any) -> None:
    """Refuses values that mean nothing. Raises RecipeError, which names the key."""
    unknown = [name for name in values.hub_extras if name not in EXTRAS]
    if unknown:
        raise RecipeError(f"hub_extras: {unknown[0]} is none of {', '.join(EXTRAS)}")
    if values.push_to_hub and not values.output_dir:
        raise RecipeError("push_to_hub needs output_dir")


def target_of(values: Any) -> str:
    """The repository as the recipe names it: `owner/name`, or `name` for the token's own account."""
    return values.hub_model_id or Path(values.output_dir).name


def _say(error: BaseException) -> str:
    """An error in one line, without what a server may have put into it."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)[:300]


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


# --------------------------------------------------------------------------------------------------------------------
# Before the first step
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """Where uploads go.

    Attributes:
        repo_id: `owner/name`.
        exists: whether the repository is there already.
        newest: the step of the newest model in it, None without one.
        run: the name of the run that it holds, None where no run of this kind wrote.
        is_empty: whether there is nothing in it yet that could be overwritten.
        line: what the plan says of it.
    """

    repo_id: str
    exists: bool
    newest: int | None
    line: str
    run: str | None = None
    is_empty: bool = True


def find_target(values: Any) -> Target | None:
    """Asks the Hub whether this run may write where the recipe says. Changes nothing there.

    Returns:
        None when the Hub cannot be reached now.

    Raises:
        RecipeError: when the token is missing or unknown, or may not write there; names what to change.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError

    api = HfApi(token=values.hub_token)
    target = target_of(values)
    visibility = "public" if values.hub_private_repo is False else "private"
    try:
        try:
            account = api.whoami()
        except LocalTokenNotFoundError as error:
            raise RecipeError("push_to_hub: there is no token: `hf auth login`, or set HF_TOKEN, or push_to_hub: "
                              "false") from error  # fmt: skip
        owner, _, name = target.rpartition("/")
        owner = owner or account["name"]
        token = (account.get("auth") or {}).get("accessToken") or {}
        if token.get("role") == "read":
            raise RecipeError("push_to_hub: this token may only read: make one that may write, or push_to_hub: false")
        organisations = {org["name"]: org.get("roleInOrg") for org in account.get("orgs", [])}
        writable = [account["name"], *(org for org, role in organisations.items() if role != "read")]
        if owner not in writable:
            choices = ", ".join(f"{place}/{name}" for place in writable)
            raise RecipeError(f"push_to_hub: {account['name']} may not write to {owner}: set hub_model_id to {choices}")
        repo_id = f"{owner}/{name}"
        try:
            info = api.model_info(repo_id)
            private = info.private
            api.auth_check(repo_id, write=True)
        except RepositoryNotFoundError:
            line = f"makes {repo_id} ({visibility}) and uploads as {account['name']}"
            return Target(repo_id, False, None, line)
        mark = _mark_of(api, repo_id, values.hub_revision)
        newest = None if mark is None else mark["step"]
        is_empty = not any(_matches(file.rfilename, MODEL_FILES) for file in info.siblings or [])
        there = "there already" + ("" if newest is None else f" with step {newest}")
        line = f"uploads to {repo_id} ({'private' if private else 'public'}, {there}) as {account['name']}"
        return Target(repo_id, True, newest, line, None if mark is None else mark["run"], is_empty)
    except HfHubHTTPError as error:
        if _status(error) in (401, 403):
            raise RecipeError(
                f"push_to_hub: the Hub refuses this token for {target} ({_say(error)}): `hf auth login` with one that "
                f"may write there, or push_to_hub: false"
            ) from error
        return None
    except (OSError, httpx.HTTPError):
        return None


def _mark_of(api: Any, repo_id: str, branch: str | None) -> dict[str, Any] | None:
    """Which run's model is on main, and of which step; None when no run wrote there. Errors of the Hub are raised."""
    from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

    try:
        path = api.hf_hub_download(repo_id, NEWEST, revision=branch or "main")
        mark = json.loads(Path(path).read_text())
        return {"step": int(mark["step"]), "run": str(mark["run"])}
    except (EntryNotFoundError, RevisionNotFoundError):
        return None
    except (ValueError, KeyError, TypeError):
        return None


def describe(values: Any, resume: resumption.Resume | None, ask: bool) -> tuple[str, Target | None]:
    """The Hub's line of the plan, and where uploads go when that could be found out.

    Args:
        values: the recipe's keys as attributes.
        resume: where the run goes on.
        ask: whether the Hub may be asked.

    Raises:
        RecipeError: when the Hub refuses the token, or holds another run.
    """
    if not values.push_to_hub:
        return "  Hub:        nothing is uploaded (push_to_hub: false)", None
    what = "the final model" if _strategy(values) == "end" else "each checkpoint as a revision of its own"
    if not ask:
        return f"  Hub:        uploads to {target_of(values)}, {what}; the token is not checked", None
    target = find_target(values)
    if target is None:
        return f"  Hub:        cannot be reached now; uploads to {target_of(values)} are tried until it can", None
    refuse_other_run(target, values, resume)
    return f"  Hub:        {target.line}; {what}", target


def _strategy(values: Any) -> str:
    return str(getattr(values.hub_strategy, "value", values.hub_strategy))


def refuse_other_run(target: Target, values: Any, resume: resumption.Resume | None) -> None:
    """Refuses to write a new run over one that is on the Hub already.

    Raises:
        RecipeError: naming the two ways out.
    """
    if wants_hub(values):
        return
    mine = resumption.run_name(resumption.read_description(Path(values.output_dir))) if resume is not None else None
    if target.run is not None and target.run != mine:
        raise RecipeError(
            f"{target.repo_id} holds another run up to step {target.newest}, not that of {values.output_dir}: add "
            f"--resume_from_checkpoint hub to go on from there, or choose another hub_model_id"
        )
    if target.run is None and not target.is_empty:
        raise RecipeError(f"{target.repo_id} holds a model that is not this run's: choose another hub_model_id")


def make_repository(values: Any, target: Target) -> None:
    """Makes the repository, private unless the recipe says otherwise. Raises RecipeError when that is refused."""
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi(token=values.hub_token).create_repo(
            target.repo_id, private=values.hub_private_repo is not False, exist_ok=True
        )
    except (HfHubHTTPError, OSError, httpx.HTTPError) as error:
        if _status(error) in (401, 403):
            raise RecipeError(
                f"push_to_hub: {target.repo_id} cannot be made with this token ({_say(error)}): take one that may, or "
                f"make the repository yourself"
            ) from error
        logger.warning("the repository %s could not be made yet (%s); uploads try again", target.repo_id, _say(error))


# --------------------------------------------------------------------------------------------------------------------
# Going on from the Hub
# --------------------------------------------------------------------------------------------------------------------


def wants_hub(values: Any) -> bool:
    """Whether the recipe asks to go on from the Hub: `resume_from_checkpoint: hub`, or `hub:step-50`."""
    word = str(values.resume_from_checkpoint or "")
    return word.partition(":")[0].lower() == resumption.HUB


def asked_checkpoint(values: Any) -> Path | None:
    """Where `resume_from_checkpoint: hub:step-N` goes on once it is fetched; None when the newest is wanted.

    Raises:
        RecipeError: when it names anything but a step.
    """
    asked = str(values.resume_from_checkpoint).partition(":")[2]
    if asked and not re.fullmatch(r"step-\d+", asked):
        raise RecipeError(f"resume_from_checkpoint: write {resumption.HUB}, or {resumption.HUB}:step-50, not "
                          f"{values.resume_from_checkpoint}")  # fmt: skip
    return Path(values.output_dir, f"checkpoint-{asked.removeprefix('step-')}") if asked else None


def fetch_checkpoint(values: Any) -> Path | None:
    """Brings a run from the Hub into the run folder: its newest checkpoint or the one asked for, and its description.

    A complete checkpoint of that step that is there already is left as it is.

    Returns:
        The checkpoint's folder; None when the repository holds no run yet, so that it begins at step 0.

    Raises:
        RecipeError: when there is no such checkpoint, it cannot be fetched, or it holds no optimizer.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError

    api = HfApi(token=values.hub_token)
    folder, repo_id = Path(values.output_dir), target_of(values)
    asked_checkpoint(values)
    asked = str(values.resume_from_checkpoint).partition(":")[2]
    try:
        if "/" not in repo_id:
            repo_id = f"{api.whoami()['name']}/{repo_id}"
        try:
            mark = _mark_of(api, repo_id, values.hub_revision)
        except RepositoryNotFoundError:
            mark = None
        if mark is None and not asked:
            logger.warning("%s holds no run yet: this one begins at step 0", repo_id)
            return None
        mine = resumption.run_name(resumption.read_description(folder))
        if mark is not None and mine not in (None, mark["run"]):
            raise RecipeError(f"{folder} holds another run than {repo_id}: choose another --output_dir")
        revision = asked or f"step-{(mark or {}).get('step')}"
        goal = folder / f"checkpoint-{revision.removeprefix('step-')}"
        if goal.is_dir() and resumption.fault_in(goal) is None:
            return goal
        logger.info("fetching %s at %s", repo_id, revision)
        draft = folder / f".fetching-{revision.removeprefix('step-')}-{platform.node()}"  # one per machine
        api.snapshot_download(repo_id, revision=revision, local_dir=draft, ignore_patterns=[*RUN_FILES, NEWEST])
        shutil.rmtree(draft / ".cache", ignore_errors=True)
        if fault := resumption.fault_in(draft):
            raise RecipeError(
                f"resume_from_checkpoint: {repo_id} at {revision} cannot be gone on from: {fault}"
                + ("" if (draft / "optimizer.pt").exists() else " (was it uploaded with hub_resume_state: false?)")
            )
        _refuse_pickles(draft, values)
        if not (folder / resumption.RUN_DESCRIPTION).exists():
            patterns = [resumption.RUN_DESCRIPTION, *(f"{path}/*" for path in EXTRAS.values())]
            api.snapshot_download(repo_id, revision=values.hub_revision or "main", local_dir=folder,
                                  allow_patterns=patterns)  # fmt: skip
            shutil.rmtree(folder / ".cache", ignore_errors=True)
        if goal.is_dir() and resumption.fault_in(goal) is None:  # another machine was faster
            shutil.rmtree(draft, ignore_errors=True)
            return goal
        shutil.rmtree(goal, ignore_errors=True)  # an incomplete one
        draft.rename(goal)
        return goal
    except (LocalTokenNotFoundError, HfHubHTTPError, OSError, httpx.HTTPError) as error:
        raise RecipeError(f"resume_from_checkpoint: cannot fetch {asked or 'the newest checkpoint'} of {repo_id} "
                          f"({_say(error)})") from error  # fmt: skip


def _refuse_pickles(folder: Path, values: Any) -> None:
    """Refuses files that may run code when they are loaded, such as DeepSpeed's shards: these came from outside."""
    if values.hub_trust_pickles:
        return
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    strange = next((name for name in names if "/" in name or not _matches(name, HARMLESS)), None)
    if strange is not None:
        shutil.rmtree(folder, ignore_errors=True)
        raise RecipeError(
            f"resume_from_checkpoint: {printable(strange)} may be a pickle, which runs code when it is loaded (as "
            f"DeepSpeed's and FSDP's shards are); add --hub_trust_pickles true if you trust everyone who can write to "
            f"{target_of(values)}"
        )


# --------------------------------------------------------------------------------------------------------------------
# Uploading
# --------------------------------------------------------------------------------------------------------------------


def _limit_silence() -> None:
    """Lets the client give up on a silent Hub; by default it waits for ever, and all that follow with it."""
    import httpx
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils._http import default_client_factory

    def client() -> httpx.Client:
        made = default_client_factory()
        made.timeout = httpx.Timeout(SILENCE, connect=min(30.0, SILENCE))
        return made

    set_client_factory(client)
    disable_progress_bars()  # they would run through the training's output


class OtherRunError(RuntimeError):
    """The repository belongs to another run."""


def is_uploading() -> bool:
    """Whether an upload is under way in this process, for which Python would wait when it ends."""
    return any(thread.name == _THREAD and thread.is_alive() for thread in threading.enumerate())


class Uploader:
    """Uploads checkpoints in a thread of its own, one after the other, and tries again until they are there.

    Training never waits for it and never fails by it: problems are logged, and `summary` says what is where.

    Args:
        values: the recipe's keys as attributes.
        folder: the run folder.
        repo_id: `owner/name`; None when the Hub was not reachable, then the thread finds out.
    """

    def __init__(self, values: Any, folder: Path, repo_id: str | None):
        from huggingface_hub import HfApi

        _limit_silence()
        self.repo_id = repo_id or target_of(values)
        self.branch = values.hub_revision or "main"
        self._api = HfApi(token=values.hub_token)
        self._folder, self._queue_folder = folder, folder / QUEUE
        self._private = values.hub_private_repo is not False
        self._each = _strategy(values) != "end"
        self._resume_state, self._extras = values.hub_resume_state, list(values.hub_extras)
        self._jobs: queue.Queue[str] = queue.Queue()  # names of folders in the queue folder; "" is the final model
        self._done: dict[str, str] = {}  # job -> commit
        self._failed: dict[str, str] = {}  # job -> why, the last time
        self._given_up: list[str] = []
        self._current: str | None = None
        self._catching_up: set[str] = set()  # jobs of an earlier start, which the Hub may have already
        self._leave = threading.Event()
        self._prepared = False
        self._run = resumption.run_name(resumption.read_description(folder))
        self._thread = threading.Thread(target=self._work, name=_THREAD, daemon=True)

    # ---- called by the training ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Takes up what an earlier start of this run still owed, and begins to work."""
        left = [path for path in self._queue_folder.glob("step-*") if path.is_dir()]
        for path in sorted(left, key=lambda path: int(path.name.removeprefix("step-"))):
            if resumption.fault_in(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                self._jobs.put(path.name)
        if self._each:
            queued = {path.name for path in left}
            for step, path in resumption.checkpoints_in(self._folder).items():
                if f"step-{step}" not in queued and not resumption.fault_in(path):
                    self.add(path)
        self._catching_up = set(self._queued())
        self._thread.start()

    def add(self, checkpoint: Path) -> None:
        """Queues a complete checkpoint. Takes as long as making links does, and never raises."""
        if not self._each:
            return
        name = checkpoint.name.replace("checkpoint-", "step-")
        goal = self._queue_folder / name
        try:
            _link_tree(checkpoint, goal)
        except OSError as error:
            logger.warning("%s cannot be queued for the Hub (%s); a later start of this run tries again", checkpoint,
                           error)  # fmt: skip
            self._failed[name] = str(error)
            return
        self._failed.pop(name, None)
        self._done.pop(name, None)
        self._catching_up.discard(name)
        self._given_up = [other for other in self._given_up if other != name]
        self._jobs.put(name)
        waiting = sorted(self._queue_folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
        for path in waiting[1:-MAX_WAITING]:  # the first may be under way
            shutil.rmtree(path, ignore_errors=True)
            self._given_up.append(path.name)
            logger.warning("%s was not uploaded in time and waits no longer", path.name)

    def finish(self, seconds: float, *, final: bool = True) -> list[str]:
        """Uploads the run folder's final model and waits for everything.

        Args:
            seconds: how long to wait at most; Ctrl-C ends the waiting, too.
            final: whether there is a final model.

        Returns:
            What is uploaded and what is not, as lines for people.
        """
        if final:
            self._jobs.put("")
        deadline, told = time.monotonic() + seconds, time.monotonic()
        try:
            while self._is_pending() and time.monotonic() < deadline:
                time.sleep(0.05)
                if time.monotonic() - told > 30:
                    told = time.monotonic()
                    logger.info("waiting for uploads to %s (%d left; Ctrl-C leaves them for the next start)",
                                self.repo_id, self._jobs.unfinished_tasks)  # fmt: skip
        except KeyboardInterrupt:
            logger.warning("no longer waiting for uploads")
        self._leave.set()
        if not self._is_pending():
            with contextlib.suppress(OSError):
                self._queue_folder.rmdir()
        return self.summary()

    def summary(self) -> list[str]:
        """What is on the Hub and what is not, as lines for people."""
        done = [job or "the final model" for job in self._done]
        lines = [f"  on the Hub:       {self.repo_id}: {', '.join(done) or 'nothing yet'}"]
        owed = {*self._queued(), *self._failed, *([] if self._current is None else [self._current])} - set(self._done)
        waiting = sorted(owed - set(self._given_up), key=lambda job: int(job.removeprefix("step-") or 10**12))
        for job in waiting:
            why = self._failed.get(job, "it was still waiting")
            lines.append(f"  NOT on the Hub:   {job or 'the final model'} ({why})")
        lines += [
            f"  NOT on the Hub:   {job} (it waited too long; "
            + ("it is in the run folder)" if (self._folder / job.replace("step", "checkpoint")).is_dir() else
               "save_total_limit has removed it)")
            for job in self._given_up
        ]  # fmt: skip
        if waiting:
            lines.append("                    nothing is lost here: the same command uploads what is missing")
        return lines

    # ---- the thread ------------------------------------------------------------------------------------------------

    def _is_pending(self) -> bool:
        return self._jobs.unfinished_tasks > 0 and self._thread.is_alive()

    def _queued(self) -> list[str]:
        with self._jobs.mutex:
            return list(self._jobs.queue)

    def _work(self) -> None:
        while not self._leave.is_set():
            try:
                job = self._jobs.get(timeout=0.1)
            except queue.Empty:
                continue
            self._current = job
            try:
                self._upload_until_done(job)
            finally:
                self._jobs.task_done()
            self._current = None

    def _upload_until_done(self, job: str) -> None:
        delay = FIRST_DELAY
        while not self._leave.is_set():
            if job and not (self._queue_folder / job).is_dir():
                return  # given up, or uploaded as an earlier entry of the same name
            try:
                self._prepare()
                before = self._manifest(job)
                commit = self._upload_checkpoint(job) if job else self._upload_final()
            except OtherRunError as error:
                logger.error("%s", error)
                self._failed[job] = str(error)
                return
            except Exception as error:  # noqa: BLE001  # whatever a client, a proxy or a disk comes up with
                wait = self._retry_after(error) or delay
                again = _say(error)
                if self._failed.get(job) != again:
                    hint = {401: "the token is not valid any more: `hf auth login`, then the next try has it",
                            403: "this token may not write there"}.get(_status(error) or 0, "")  # fmt: skip
                    logger.warning("the upload of %s to %s failed (%s%s); the next try is in %.3g s, training goes on",
                                   job or "the final model", self.repo_id, again, hint and f"; {hint}",
                                   wait)  # fmt: skip
                self._failed[job] = again
                self._leave.wait(wait)
                delay = min(2 * delay, LARGEST_DELAY)
                continue
            self._done[job] = commit
            self._failed.pop(job, None)
            if job and self._manifest(job) == before:  # else the run was set back, and did this step again meanwhile
                shutil.rmtree(self._queue_folder / job, ignore_errors=True)
            logger.info("%s is on the Hub: %s", job or "the final model", self.repo_id)
            return
        self._failed.setdefault(job, "the run ended before")

    def _manifest(self, job: str) -> bytes | None:
        try:
            return (self._queue_folder / job / resumption.MANIFEST).read_bytes() if job else None
        except OSError:
            return None

    @staticmethod
    def _retry_after(error: BaseException) -> float | None:
        value = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
        return min(float(value), LARGEST_DELAY) if str(value).isdigit() else None

    def _prepare(self) -> None:
        if self._prepared:
            return
        if "/" not in self.repo_id:
            self.repo_id = f"{self._api.whoami()['name']}/{self.repo_id}"
        self._api.create_repo(self.repo_id, private=self._private, exist_ok=True)
        if self.branch != "main":
            self._api.create_branch(self.repo_id, branch=self.branch, exist_ok=True)
        mark = _mark_of(self._api, self.repo_id, self.branch)  # the Hub may not have been there to ask at the start
        if mark is not None and mark["run"] != self._run:
            raise OtherRunError(f"{self.repo_id} holds another run, and is left alone: choose another hub_model_id")
        self._prepared = True

    def _upload_checkpoint(self, job: str) -> str:
        """The checkpoint on its own branch, then its model on main; each commit is whole or not at all."""
        folder = self._queue_folder / job
        step = int(job.removeprefix("step-"))
        files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        wanted = [name for name in files if not _matches(name, NEVER)]
        if not self._resume_state:
            wanted = [name for name in wanted if not _matches(name, RESUME_FILES)]
        about = self._about()
        there = _mark_of(self._api, self.repo_id, self.branch) if job in self._catching_up else None
        newest = None if there is None else there["step"]
        if newest is not None and step <= newest and self._is_there(job, folder):
            return "there already"
        self._api.create_branch(self.repo_id, branch=job, exist_ok=True)
        self._commit({**about, **{name: folder / name for name in wanted}}, job, f"Checkpoint of step {step}")
        if newest is not None and step < newest:
            return "a revision only, for main has a newer model"
        model: dict[str, Path | bytes] = {name: folder / name for name in wanted if _matches(name, MODEL_FILES)}
        model |= {**about, **self._extra_files(), NEWEST: self._mark(step)}
        return self._commit(model, self.branch, f"Model of step {step}")

    def _is_there(self, job: str, folder: Path) -> bool:
        """Whether the Hub holds this very checkpoint; a commit is whole, so its manifest stands for all of it."""
        from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

        try:
            there = Path(self._api.hf_hub_download(self.repo_id, resumption.MANIFEST, revision=job))
        except (EntryNotFoundError, RevisionNotFoundError):
            return False
        return there.read_bytes() == (folder / resumption.MANIFEST).read_bytes()

    def _upload_final(self) -> str:
        """The run folder's model on main, with everything that tells of the run."""
        files = {path.name: path for path in self._folder.iterdir() if path.is_file()}
        model = {name: path for name, path in files.items() if _matches(name, MODEL_FILES)}
        step = max(resumption.checkpoints_in(self._folder), default=0)
        about = {**self._about(), **self._extra_files(), NEWEST: self._mark(step)}
        return self._commit({**model, **about}, self.branch, "Final model")

    def _mark(self, step: int) -> bytes:
        return json.dumps({"step": step, "run": self._run}).encode()

    def _about(self) -> dict[str, Path | bytes]:
        # Read at once, for the training writes them anew.
        return {name: (self._folder / name).read_bytes() for name in RUN_FILES if (self._folder / name).is_file()}

    def _extra_files(self) -> dict[str, Path | bytes]:
        files: dict[str, Path | bytes] = {}
        for name in self._extras:
            place = self._folder / EXTRAS[name]
            # Read at once: these grow while they are uploaded.
            files |= {path.relative_to(self._folder).as_posix(): path.read_bytes() for path in sorted(place.rglob("*"))
                      if path.is_file()}  # fmt: skip
        return files

    def _commit(self, files: dict[str, Path | bytes], branch: str, message: str) -> str:
        from huggingface_hub import CommitOperationAdd

        operations = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in files.items()
        ]
        info = self._api.create_commit(self.repo_id, operations, commit_message=message, revision=branch)
        return str(info.oid)


def upload_rest(values: Any) -> None:
    """Uploads what a finished run still owes the Hub, and says what is there then."""
    uploader = Uploader(values, Path(values.output_dir), None)
    uploader.start()
    print("\n".join(uploader.finish(60 * values.hub_wait_minutes)), flush=True)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    from fnmatch import fnmatch

    return any(fnmatch(name, pattern) for pattern in patterns)


def _link_tree(source: Path, goal: Path) -> None:
    """The files of a folder under another name: as links where the file system has them, else as copies."""
    draft = goal.with_name(f".{goal.name}")
    shutil.rmtree(draft, ignore_errors=True)

    def link(old: str, new: str) -> None:
        try:
            os.link(old, new)
        except OSError:
            shutil.copy2(old, new)

    shutil.copytree(source, draft, copy_function=link)
    shutil.rmtree(goal, ignore_errors=True)
    draft.rename(goal)
