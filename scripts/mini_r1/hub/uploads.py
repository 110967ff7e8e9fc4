"""Uploads beside the training: one after the other, tried again until they are there."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from types import TracebackType

import httpx
import huggingface_hub  # loads its parts when they are used

from mini_r1.common import HubError, first_line, is_main_process, say
from mini_r1.hub import repository as hub
from mini_r1.recipe import Recipe
from mini_r1.recipe.arguments import HUB_EXTRAS
from mini_r1.run_folder import MANIFEST
from mini_r1.run_folder.manifest import checkpoints_in, fault_in

logger = logging.getLogger(__name__)

# Seconds before the second try of an upload, doubled for each further one up to the largest.
FIRST_DELAY, LARGEST_DELAY = 2.0, 300.0
# Seconds without a byte after which a request has failed; the client itself would wait for ever.
SILENCE = 600.0

_under_way: set[Future[None]] = set()


def is_uploading() -> bool:
    """Whether an upload is under way in this process, for which Python would wait when it ends."""
    return bool(_under_way)


class Uploads:
    """Uploads checkpoints beside the training, one after the other, and tries again until they are there.

    Training never waits for it and never fails by it. Entering the context uploads what an earlier start of the run
    owed; leaving it uploads the final model, waits at most `hub_wait_minutes` and prints what is on the Hub and what is
    not. After an exception it does not wait. Without `push_to_hub`, and on all processes but the main one, it does
    nothing. Only the methods below the line run in huggingface_hub's thread.

    Args:
        recipe: what was asked.
        folder: the run folder; its `run.json` must be there when the context is entered.
        target: where `describe` says that uploads go; None when the Hub was not reachable then.
    """

    def __init__(self, recipe: Recipe, folder: Path, target: hub.Target | None):
        self._recipe, self._folder, self._target = recipe, folder, target or hub.Target(recipe)
        self._is_on = bool(recipe.resolved["push_to_hub"]) and is_main_process()
        self._run: str | None = None
        self._futures: dict[str, Future[None]] = {}  # by what is uploaded, as people read it
        self._problems: dict[str, str] = {}  # of the latest try
        self._is_ready = False
        self._leave = threading.Event()

    def __enter__(self) -> Uploads:
        self._run = hub.run_in(self._folder)
        for checkpoint in checkpoints_in(self._folder).values():
            if not fault_in(checkpoint):
                self.add(checkpoint)
        return self

    def add(self, checkpoint: Path) -> None:
        """Takes a complete checkpoint to be uploaded; never waits."""
        if hub.uploads_each(self._recipe):
            name = checkpoint.name.replace("checkpoint-", "step-")
            self._queue(name, lambda: self._upload_checkpoint(checkpoint, name))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None:
                self._queue("the final model", self._upload_final)
                wait(self._futures.values(), timeout=60 * self._recipe.hub.hub_wait_minutes)
        finally:  # also when Ctrl-C ends the waiting
            self._leave.set()
            for future in self._futures.values():
                future.cancel()
            if self._is_on:
                say(*self._summary())

    def _queue(self, name: str, upload: Callable[[], None]) -> None:
        if self._is_on:
            self._futures[name] = future = self._target.api.run_as_future(self._try_until_done, name, upload)
            _under_way.add(future)
            future.add_done_callback(_under_way.discard)

    def _summary(self) -> list[str]:
        """What is on the Hub and what is not, as lines for people."""
        done, missing = [], []
        for name, future in self._futures.items():
            if future.cancelled() or not future.done():
                missing.append(f"{name} ({self._problems.get(name, 'it was still waiting')})")
            elif error := future.exception():
                missing.append(f"{name} ({first_line(error)})")
            else:
                done.append(name)
        lines = [f"  on the Hub:       {self._target.id}: {', '.join(done) or 'nothing yet'}"]
        lines += [f"  NOT on the Hub:   {line}" for line in missing]
        if missing:
            lines.append("                    the same command uploads what is still in the run folder")
        return lines

    # ----------------------------------------------------------------------------------------------------------------

    def _try_until_done(self, name: str, upload: Callable[[], None]) -> None:
        """Uploads, again and again. Raises HubError when that is of no use, or when the run ends before."""
        delay = FIRST_DELAY
        while not self._leave.is_set():
            try:
                self._prepare()
                upload()
                return logger.info("%s is on the Hub: %s", name, self._target.id)
            except (OSError, httpx.HTTPError, RuntimeError, ValueError, KeyError) as error:
                # Answers of proxies give ValueError and KeyError, hf_xet RuntimeError, as LFS does around its cause.
                problem = first_line(error.__cause__ if type(error) is RuntimeError and error.__cause__ else error)
                if self._problems.get(name) != problem:
                    logger.warning("%s is not on the Hub yet: %s; training continues, uploads try again", name, problem)
                self._problems[name] = problem
                self._leave.wait(delay)
                delay = min(2 * delay, LARGEST_DELAY)
        raise HubError(self._problems.get(name, "it was still waiting"))

    def _prepare(self) -> None:
        """Makes repository and branch where they are missing, and checks that they are this run's, once."""
        huggingface_hub.get_session().timeout = httpx.Timeout(SILENCE, connect=min(30.0, SILENCE))
        if not self._is_ready:
            huggingface_hub.utils.disable_progress_bars()  # they would run through the training's output
            self._target.make()
            self._target.look()
            self._target.refuse_others(self._run)
            if self._target.branch != "main":
                self._target.api.create_branch(self._target.id, branch=self._target.branch, exist_ok=True)
            self._is_ready = True

    def _upload_checkpoint(self, checkpoint: Path, name: str) -> None:
        """The checkpoint on its own branch `name`, then its model on main; each commit is whole or not at all."""
        step = int(name.removeprefix("step-"))
        files = {path.relative_to(checkpoint).as_posix(): path for path in checkpoint.rglob("*") if path.is_file()}
        if fault_in(checkpoint):  # asked after the listing, which is whole then
            logger.warning("%s was removed before it was uploaded", checkpoint)
            raise HubError("save_total_limit removed it before it was uploaded")
        newest = self._target.read_mark()[1] or 0
        if step <= newest and self._target.read(MANIFEST, name) == (checkpoint / MANIFEST).read_bytes():
            return
        unwanted = hub.NEVER + ([] if self._recipe.hub.hub_resume_state else hub.RESUME_FILES)
        wanted = {key: path for key, path in files.items() if not hub.matches(key, unwanted)}
        self._target.api.create_branch(self._target.id, branch=name, exist_ok=True)
        self._commit(wanted, name, f"Checkpoint of step {step}")
        if step >= newest:
            self._upload_model(wanted, step, f"Model of step {step}")

    def _upload_final(self) -> None:
        files = {path.name: path for path in self._folder.iterdir()}
        self._upload_model(files, max(checkpoints_in(self._folder), default=0), "Final model")

    def _upload_model(self, files: dict[str, Path], step: int, message: str) -> None:
        """The model among these files on main, with the extras and the mark."""
        model: dict[str, Path | bytes] = {name: files[name] for name in files if hub.matches(name, hub.MODEL_FILES)}
        for extra in self._recipe.hub.hub_extras:
            paths = [path for path in (self._folder / HUB_EXTRAS[extra]).rglob("*") if path.is_file()]
            model |= {path.relative_to(self._folder).as_posix(): path.read_bytes() for path in paths}
        model[hub.NEWEST] = json.dumps({"step": step, "run": self._run}).encode()
        self._commit(model, self._target.branch, message)

    def _commit(self, files: Mapping[str, Path | bytes], branch: str, message: str) -> None:
        """One commit of files or bytes, by name, and of what describes the run."""
        # What describes the run, and the extras, are read at once, because the training writes to them meanwhile.
        about = [self._folder / name for name in hub.RUN_FILES if (self._folder / name).is_file()]
        contents = {**files, **{path.name: path.read_bytes() for path in about}}
        operations = [huggingface_hub.CommitOperationAdd(name, content) for name, content in contents.items()]
        self._target.api.create_commit(self._target.id, operations, commit_message=message, revision=branch)


def upload_rest(recipe: Recipe) -> None:
    """Uploads what a finished run still owes the Hub, and prints what is there then."""
    with Uploads(recipe, Path(recipe.training.output_dir), None):
        pass
