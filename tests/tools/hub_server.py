"""A Hugging Face Hub in miniature on 127.0.0.1, for tests that need the real client without a network.

It keeps repositories in memory and speaks what huggingface_hub speaks: the HTTP API, uploads by LFS and by Xet, and
downloads. `HubServer.inject` breaks single requests: refused, cut off, slow, held, or answered into the void.

    with HubServer({"token-a": User("alice", orgs={"team": "write"})}) as hub:
        HfApi(endpoint=hub.url, token="token-a").create_repo("alice/model")
        hub.repo("alice/model").files()

Where it differs from huggingface.co on purpose: the client takes a 401 for a missing repository only when the address
starts with https, so the 401 for a hidden or missing repository names that cause in a header here. Downloads are
answered in place instead of by a redirect to a CDN. Pull requests, discussions, gated repositories, Spaces' run time,
moving a repository and LFS uploads in several parts are not served; `unserved` lists what was asked for in vain.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fnmatch
import hashlib
import http.server
import json
import os
import re
import secrets
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Literal
from unittest import mock

LFS_NAMES = """
    *.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz *.onnx *.ot
    *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite *.tgz *.wasm
    *.xz *.zip *.zst *tfevents*
"""
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_NAMES.split()).encode()
LFS_FROM_BYTES = 10 * 2**20  # larger files go to LFS whatever their name

XET_DELAY = "20ms"  # from which hf_xet's waits between repetitions grow; 3 s of its own accord

TREE_PAGE = 1000
COMMITS_PAGE = 50

REPO = r"(?P<kind>models|datasets|spaces)/(?P<namespace>[^/]+)/(?P<name>[^/]+)"
PAGE = r"(?:(?P<kind>datasets|spaces)/)?(?P<namespace>[^/]+)/(?P<name>[^/]+)"  # addresses outside /api


@dataclass(frozen=True)
class User:
    """The owner of a token. `orgs` maps organisations to a role: read, contributor, write or admin.

    A `fineGrained` token may do only what `scopes` lists, by namespace ("alice") or by repository ("alice/model",
    "datasets/alice/data"): "repo.content.read" and "repo.write".
    """

    name: str
    orgs: Mapping[str, str] = field(default_factory=dict)
    role: Literal["read", "write", "fineGrained"] = "write"
    scopes: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass
class Request:
    """One line of the log. `route` says what it was for; `status` stays None when no answer was sent."""

    method: str
    path: str
    time: float
    had_token: bool
    user: str | None = None
    route: str = ""
    status: int | None = None
    received: int = 0  # bytes of the body
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass
class Fault:
    """What happens to the next `times` requests (None: to all) that match `method` and, by search, `path`.

    A process that `callback` kills leaves behind what it had handed to the system: that still comes in.

    In this order: `read` bytes of the body are taken in, `arrived` is set, `callback` is called with the request,
    `delay` seconds pass, and `hold` is waited for. Then the connection is dropped (`drop`), or `status` is answered,
    or the request is served as usual: at `trickle` bytes a second both ways, without its answer (`lose_answer`), or
    with only the first `cut` bytes of the answer's body.
    """

    path: str = ""
    method: str = ""
    times: int | None = 1
    skip: int = 0  # matching requests that are let through before
    read: int = 0
    callback: Callable[[Request], object] | None = None
    delay: float = 0
    hold: threading.Event | None = None
    drop: Literal["", "close", "reset"] = ""
    status: int | None = None
    message: str = "Injected by the test"
    code: str | None = None  # X-Error-Code, from which the client chooses its exception
    retry_after: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None  # instead of {"error": message}
    trickle: float = 0
    lose_answer: bool = False
    cut: int | None = None
    hits: int = field(default=0, init=False)
    arrived: threading.Event = field(default_factory=threading.Event, init=False)

    def matches(self, request: Request) -> bool:
        return (not self.method or self.method == request.method) and re.search(self.path, request.path) is not None


class HubError(Exception):
    """A refusal, in the words and headers by which the client tells one from another."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class DisconnectedError(Exception):
    """The client is gone, or the server is closing."""


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def as_json(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    named = {"Content-Type": "application/json; charset=utf-8", **(headers or {})}
    return Answer(status, json.dumps(data).encode(), named)


@dataclass(frozen=True)
class Entry:
    """A file of a commit. `oid` is git's name for it: for an LFS file that of the pointer."""

    data: bytes = field(repr=False)
    lfs: bool
    oid: str
    sha256: str

    @classmethod
    def of(cls, data: bytes, lfs: bool) -> Entry:
        sha256 = hashlib.sha256(data).hexdigest()
        return cls(data, lfs, git_blob(pointer(sha256, len(data)) if lfs else data), sha256)

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    @property
    def pointer_size(self) -> int:
        return len(pointer(self.sha256, self.size))


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: Mapping[str, Entry] = field(repr=False)


@dataclass
class Repo:
    """A repository as the server holds it. Commits are whole: a reader sees the one before or the one after."""

    id: str
    type: str
    private: bool
    creator: str
    created: str
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    history: dict[str, Commit] = field(default_factory=dict, repr=False)
    blobs: dict[str, bytes] = field(default_factory=dict, repr=False)  # uploaded large files by sha256

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    @property
    def prefix(self) -> str:
        return "" if self.type == "model" else f"{self.type}s/"

    @property
    def key(self) -> str:
        return self.prefix + self.id

    def revisions(self) -> dict[str, str]:
        """The branches and the commits they point to."""
        return dict(self.branches)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Every file at a branch, tag or commit, without the .gitattributes that each new repository gets."""
        files = self.at(revision).files
        return {path: files[path].data for path in sorted(files) if path != ".gitattributes"}

    def lfs_files(self, revision: str = "main") -> set[str]:
        return {path for path, entry in self.at(revision).files.items() if entry.lfs}

    def commits(self, revision: str = "main") -> list[Commit]:
        """The history from the newest commit to the oldest."""
        oid: str | None = self.at(revision).oid
        found = []
        while oid is not None:
            found.append(self.history[oid])
            oid = found[-1].parent
        return found

    def at(self, revision: str) -> Commit:
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.history:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.history[oid]

    def add(self, branch: str, files: Mapping[str, Entry], title: str, message: str, author: str) -> Commit:
        parent = self.branches.get(branch)
        date = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        contents = sorted((path, entry.oid) for path, entry in files.items())
        # The number keeps apart two equal commits of the same millisecond.
        oid = hashlib.sha1(repr((parent, contents, title, date, len(self.history), self.key)).encode()).hexdigest()
        commit = Commit(oid, parent, title, message, author, date, dict(files))
        self.history[oid] = commit
        self.branches[branch] = oid
        return commit


@dataclass
class Call:
    """A request on its way to a route."""

    request: Request
    groups: dict[str, str]
    query: dict[str, list[str]]
    body: bytes
    user: User | None
    bearer: str | None

    def json(self) -> Any:
        try:
            return json.loads(self.body or b"{}")
        except ValueError as error:
            raise HubError(400, f"The body is not JSON: {error}") from None

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("1", "true")


Route = Callable[["HubServer", Call], Answer]
ROUTES: list[tuple[str, re.Pattern[str], Route]] = []


def route(methods: str, *patterns: str) -> Callable[[Route], Route]:
    """Enter a method of HubServer in the table of routes. Patterns match the address as sent, still quoted."""

    def enter(function: Route) -> Route:
        ROUTES.extend((methods, re.compile(pattern), function) for pattern in patterns)
        return function

    return enter


class HubServer:
    """The server; a context manager. `users` maps tokens to users and may be changed while it runs."""

    def __init__(self, users: Mapping[str, User] | None = None) -> None:
        self.users: dict[str, User] = dict(users or {})
        self._log: list[Request] = []
        self._faults: list[Fault] = []
        self._repos: dict[str, Repo] = {}
        self._xet_tokens: dict[str, Repo] = {}
        self._xorbs: dict[str, bytes] = {}
        self._failures: list[Exception] = []
        self._lock = threading.RLock()
        self._closing = threading.Event()
        # hf_xet remembers on disk, by address, what it has uploaded. A new address each time keeps it from believing
        # that a later server on the same port has it.
        self._secret = secrets.token_hex(8)
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="hub", daemon=True)

    # ------------------------------------------------------------------ what tests use

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def requests(self) -> list[Request]:
        """The requests so far in the order of arrival, without hf_xet's telemetry, which comes at any time."""
        with self._lock:
            return [request for request in self._log if request.route != "telemetry"]

    @property
    def unserved(self) -> list[str]:
        """Requests for which there is no route; they were answered by 501, which the client does not repeat."""
        return [f"{request.method} {request.path}" for request in self.requests if not request.route]

    def routes(self) -> list[str]:
        """The log by the names of the routes."""
        return [request.route for request in self.requests]

    def inject(self, fault: Fault) -> Fault:
        """Apply a fault from now on. Of several that match a request, the one injected first acts."""
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear_faults(self) -> None:
        with self._lock:
            self._faults.clear()

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        """The repository; KeyError when there is none."""
        with self._lock:
            return self._repos[Repo(repo_id, repo_type, False, "", "").key]

    def repos(self) -> list[str]:
        """The repositories' names, with "datasets/" before a data set's."""
        with self._lock:
            return sorted(self._repos)

    def put(
        self,
        repo_id: str,
        files: Mapping[str, bytes],
        revision: str = "main",
        *,
        repo_type: str = "model",
        private: bool = False,
        message: str = "Files put by the test",
    ) -> Commit:
        """Commit files on the server's side. Repository and branch are made when missing."""
        with self._lock:
            key = Repo(repo_id, repo_type, private, "", "").key
            repo = self._repos.get(key) or self._create(repo_id, repo_type, private, repo_id.split("/")[0])
            repo.branches.setdefault(revision, repo.branches["main"])
            head = repo.at(revision)
            added = {path: Entry.of(data, self._is_lfs(head, path, data, len(data))) for path, data in files.items()}
            repo.blobs.update({entry.sha256: entry.data for entry in added.values() if entry.lfs})
            return repo.add(revision, {**head.files, **added}, message, "", repo.creator)

    def environment(self, home: Path, token: str | None = None, *, xet: bool = True) -> dict[str, str]:
        """Environment variables that send a program's client here, with its caches and its log-in under `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_XET_CACHE": str(home / "xet"),
            "HF_DATASETS_CACHE": str(home / "datasets"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_TOKEN": token or "",
            "HF_HUB_DISABLE_XET": "0" if xet else "1",
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_XET_CLIENT_RETRY_BASE_DELAY": XET_DELAY,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def close(self) -> None:
        """Let held requests go without an answer, end every connection and free the port."""
        self._closing.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        self._server.end_connections()

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if error is None and self._failures:
            raise self._failures[0]

    # ------------------------------------------------------------------ requests

    def receive(self, request: Request) -> Fault | None:
        """Log a request and choose the fault that acts on it."""
        with self._lock:
            request.route = next((f.__name__ for m, p, f in ROUTES if _matches(m, p, request)), "")
            self._log.append(request)
            for fault in self._faults:
                if not fault.matches(request) or (fault.times is not None and fault.hits >= fault.times):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.hits += 1
                return fault
        return None

    def pause(self, seconds: float) -> None:
        if self._closing.wait(seconds):
            raise DisconnectedError

    def wait_for(self, event: threading.Event) -> None:
        while not event.wait(0.02):
            self.pause(0)

    def answer(self, request: Request, body: bytes) -> Answer:
        """Serve a request whose body has come in whole."""
        address, _, query = request.path.partition("?")
        try:
            bearer = request.headers.get("authorization", "").removeprefix("Bearer ") or None
            user = self.users.get(bearer) if bearer else None
            request.user = user.name if user else None
            for methods, pattern, function in ROUTES:
                found = pattern.fullmatch(address)
                if found is None or request.method not in methods.split():
                    continue
                if bearer and user is None and bearer not in self._xet_tokens and function.__name__ != "telemetry":
                    raise HubError(401, "Invalid credentials in Authorization header")
                groups = {name: urllib.parse.unquote(text) for name, text in found.groupdict().items() if text}
                parsed = urllib.parse.parse_qs(query, keep_blank_values=True)
                with self._lock:
                    return function(self, Call(request, groups, parsed, body, user, bearer))
            raise HubError(501, f"The tests' hub does not serve {request.method} {address}")
        except HubError as error:
            return refusal(error)
        except Exception as error:
            self._failures.append(error)
            raise

    # ------------------------------------------------------------------ rights

    def _repo(self, call: Call, *, write: bool = False) -> Repo:
        """The repository of a call, if its sender may see it, and with `write` may change it."""
        kind = call.groups.get("kind", "models")
        key = ("" if kind == "models" else f"{kind}/") + f"{call.groups['namespace']}/{call.groups['name']}"
        repo = self._repos.get(key)
        if repo is None or (repo.private and not self._may_read(call.user, repo)):
            if call.user is None:
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        if write:
            self._check_write(call.user, repo.namespace, repo)
        return repo

    def _may_read(self, user: User | None, repo: Repo) -> bool:
        if user is None or (repo.namespace != user.name and repo.namespace not in user.orgs):
            return False
        granted = {*user.scopes.get(repo.namespace, ()), *user.scopes.get(repo.key, ())}
        return user.role != "fineGrained" or bool(granted & {"repo.content.read", "repo.write"})

    def _check_write(self, user: User | None, namespace: str, repo: Repo | None) -> None:
        if user is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        scoped = {*user.scopes.get(namespace, ()), *(user.scopes.get(repo.key, ()) if repo else ())}
        if user.role == "read" or (user.role == "fineGrained" and "repo.write" not in scoped):
            raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")
        role = "admin" if namespace == user.name else user.orgs.get(namespace, "")
        own = role == "contributor" and (repo is None or repo.creator == user.name)
        if role not in ("write", "admin") and not own:
            what = "upload to this repository" if repo else f'create a repository under the namespace "{namespace}"'
            raise HubError(403, f"You don't have the rights to {what}")

    # ------------------------------------------------------------------ account and repositories

    @route("GET", r"/api/whoami-v2")
    def whoami(self, call: Call) -> Answer:
        user = call.user
        if user is None:
            raise HubError(401, "Invalid username or password.")
        token: dict[str, Any] = {"displayName": "test", "role": user.role, "createdAt": "2026-01-01T00:00:00.000Z"}
        if user.role == "fineGrained":
            scoped = [
                {
                    "entity": {"_id": name, "type": self._entity_type(name, user), "name": name},
                    "permissions": list(given),
                }
                for name, given in user.scopes.items()
            ]
            token["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": scoped}
        orgs = [
            {"type": "org", "id": name, "name": name, "fullname": name, "roleInOrg": role, "isEnterprise": False}
            for name, role in user.orgs.items()
        ]
        account = {"type": "user", "id": user.name, "name": user.name, "fullname": user.name, "isPro": False}
        return as_json({**account, "orgs": orgs, "auth": {"type": "access_token", "accessToken": token}})

    @staticmethod
    def _entity_type(name: str, user: User) -> str:
        if "/" not in name:
            return "user" if name == user.name else "org"
        return name.split("/")[0].removesuffix("s") if name.count("/") == 2 else "model"

    @route("POST", r"/api/repos/create")
    def create_repo(self, call: Call) -> Answer:
        asked = call.json()
        if call.user is None:
            raise HubError(401, "Invalid username or password.")
        namespace, kind = asked.get("organization") or call.user.name, asked.get("type") or "model"
        if not re.fullmatch(r"[A-Za-z0-9_][\w.-]{0,95}", asked["name"]) or asked["name"].endswith(".git"):
            raise HubError(400, f"Invalid repository name: {asked['name']}")
        self._check_write(call.user, namespace, None)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repo = Repo(f"{namespace}/{asked['name']}", kind, private, call.user.name, "")
        url = f"{self.url}/{repo.key}"
        if repo.key in self._repos:
            return as_json({"error": f"You already created this {kind} repo", "url": url}, 409)
        self._create(repo.id, kind, private, call.user.name)
        return as_json({"url": url, "name": repo.id, "id": repo.id})

    def _create(self, repo_id: str, repo_type: str, private: bool, creator: str) -> Repo:
        created = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        repo = Repo(repo_id, repo_type, private, creator, created)
        repo.add("main", {".gitattributes": Entry.of(GITATTRIBUTES, False)}, "initial commit", "", creator)
        self._repos[repo.key] = repo
        return repo

    @route("DELETE", r"/api/repos/delete")
    def delete_repo(self, call: Call) -> Answer:
        asked = call.json()
        namespace = asked.get("organization") or (call.user.name if call.user else "")
        call.groups.update(kind=f"{asked.get('type') or 'model'}s", namespace=namespace, name=asked["name"])
        del self._repos[self._repo(call, write=True).key]
        return as_json({})

    @route("PUT", rf"/api/{REPO}/settings")
    def settings(self, call: Call) -> Answer:
        repo, asked = self._repo(call, write=True), call.json()
        if "visibility" in asked:
            repo.private = asked["visibility"] == "private"
        return as_json({"private": repo.private})

    @route("GET", rf"/api/{REPO}/auth-check(?P<write>/write)?")
    def auth_check(self, call: Call) -> Answer:
        self._repo(call, write="write" in call.groups)
        return as_json({})

    @route("GET", rf"/api/{REPO}", rf"/api/{REPO}/revision/(?P<revision>[^/]+)")
    def info(self, call: Call) -> Answer:
        repo = self._repo(call)
        commit = repo.at(call.groups.get("revision", "main"))
        siblings: list[dict[str, Any]] = []
        for path, entry in sorted(commit.files.items()):
            siblings.append({"rfilename": path})
            if call.flag("blobs"):
                siblings[-1].update(size=entry.size, blobId=entry.oid)
                if entry.lfs:
                    lfs = {"sha256": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
                    siblings[-1].update(lfs=lfs)
        data = {
            "_id": hashlib.sha1(repo.key.encode()).hexdigest()[:24],
            "id": repo.id,
            "author": repo.namespace,
            "sha": commit.oid,
            "lastModified": commit.date,
            "createdAt": repo.created,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "usedStorage": sum(len(blob) for blob in repo.blobs.values()),
            "siblings": siblings,
        }
        wanted = call.query.get("expand", []) + call.query.get("expand[]", [])
        return as_json({k: v for k, v in data.items() if not wanted or k in ("_id", "id") or k in wanted})

    @route("GET", r"/api/(?:models|datasets|spaces)/[^/]+")
    def info_without_namespace(self, call: Call) -> Answer:
        raise HubError(404 if call.user else 401, "Repository not found", "RepoNotFound")

    @route("POST", r"/api/validate-yaml")
    def validate_yaml(self, call: Call) -> Answer:
        """Every card passes; a warning when it has no metadata. Refuse one by a fault with a body of `errors`."""
        bare = not call.json().get("content", "").startswith("---\n")
        warning = [{"message": "empty or missing yaml metadata in repo card"}] if bare else []
        return as_json({"errors": [], "warnings": warning})

    # ------------------------------------------------------------------ revisions

    @route("GET", rf"/api/{REPO}/refs")
    def refs(self, call: Call) -> Answer:
        repo = self._repo(call)

        def named(refs: Mapping[str, str], folder: str) -> list[dict[str, str]]:
            return [
                {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": oid}
                for name, oid in sorted(refs.items())
            ]

        none: list[Any] = []
        listed = {"branches": named(repo.branches, "heads"), "tags": named(repo.tags, "tags")}
        return as_json({**listed, "converts": none, "pullRequests": none})

    @route("POST DELETE", rf"/api/{REPO}/branch/(?P<branch>[^/]+)")
    def branch(self, call: Call) -> Answer:
        repo, name = self._repo(call, write=True), call.groups["branch"]
        if call.request.method == "DELETE":
            if name == "main":
                raise HubError(403, "The main branch cannot be deleted")
            if repo.branches.pop(name, None) is None:
                raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
            return as_json({})
        if name in repo.branches:
            raise HubError(409, f"Reference already exists: refs/heads/{name}")
        repo.branches[name] = repo.at(call.json().get("startingPoint") or "main").oid
        return as_json({}, 201)

    @route("POST DELETE", rf"/api/{REPO}/tag/(?P<revision>[^/]+)")
    def tag(self, call: Call) -> Answer:
        repo, revision = self._repo(call, write=True), call.groups["revision"]
        if call.request.method == "DELETE":
            if repo.tags.pop(revision, None) is None:
                raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return as_json({})
        name = call.json()["tag"]
        if name in repo.tags:
            raise HubError(409, f"Tag reference exists already: {name}")
        repo.tags[name] = repo.at(revision).oid
        return as_json({}, 201)

    @route("POST", rf"/api/{REPO}/super-squash/(?P<branch>[^/]+)")
    def super_squash(self, call: Call) -> Answer:
        repo, branch = self._repo(call, write=True), call.groups["branch"]
        if branch not in repo.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        head = repo.history[repo.branches.pop(branch)]
        assert call.user is not None
        repo.add(branch, head.files, call.json().get("message") or "Super-squash", "", call.user.name)
        return as_json({})

    @route("GET", rf"/api/{REPO}/commits/(?P<revision>[^/]+)")
    def commits(self, call: Call) -> Answer:
        commits = self._repo(call).commits(call.groups["revision"])
        listed = [
            {"id": c.oid, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.author}]}
            for c in commits
        ]
        return self._page(call, listed, COMMITS_PAGE)

    # ------------------------------------------------------------------ files

    @route("GET", rf"/api/{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
    def tree(self, call: Call) -> Answer:
        repo = self._repo(call)
        commit, folder = repo.at(call.groups["revision"]), call.groups.get("path", "").strip("/")
        above = f"{folder}/" if folder else ""
        listed: dict[str, dict[str, Any]] = {}
        for path in commit.files:
            if not path.startswith(above):
                continue
            parts = path[len(above) :].split("/")
            for depth in range(1, len(parts) + 1):
                if depth == 1 or call.flag("recursive"):
                    listed[above + "/".join(parts[:depth])] = {}
        if folder and not listed:
            raise HubError(404, f"{folder} does not exist on {commit.oid}", "EntryNotFound")
        items = [self._described(repo, commit, path, call.flag("expand")) for path in sorted(listed)]
        return self._page(call, [item for item in items if item], TREE_PAGE)

    @route("POST", rf"/api/{REPO}/paths-info/(?P<revision>[^/]+)")
    def paths_info(self, call: Call) -> Answer:
        repo = self._repo(call)
        commit = repo.at(call.groups["revision"])
        if call.request.headers.get("content-type", "").startswith("application/json"):
            asked = call.json()
        else:
            form = urllib.parse.parse_qs(call.body.decode())
            asked = {"paths": form.get("paths", []), "expand": form.get("expand", [""])[0].lower() == "true"}
        items = [self._described(repo, commit, path.strip("/"), asked.get("expand", False)) for path in asked["paths"]]
        return as_json([item for item in items if item])

    def _described(self, repo: Repo, commit: Commit, path: str, expand: bool) -> dict[str, Any] | None:
        """A file or folder as the client's listings have it; None when there is neither."""
        entry = commit.files.get(path)
        inside = [] if entry else sorted(name for name in commit.files if name.startswith(f"{path}/"))
        if entry is None and not inside:
            return None
        if entry is None:
            oid = git_blob("".join(name + commit.files[name].oid for name in inside).encode())
            item: dict[str, Any] = {"type": "directory", "oid": oid, "size": 0, "path": path}
        else:
            item = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path}
            if entry.lfs:
                item["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
        if expand:
            under = [path] if entry else inside
            last = self._last_change(repo, commit, under)
            item["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
            if entry:
                item["securityFileStatus"] = {"status": "unscanned", "avScan": None, "pickleImportScan": None}
        return item

    @staticmethod
    def _last_change(repo: Repo, commit: Commit, paths: list[str]) -> Commit:
        while commit.parent is not None:
            before = repo.history[commit.parent]
            if any(before.files.get(path) != commit.files.get(path) for path in paths):
                break
            commit = before
        return commit

    def _page(self, call: Call, items: list[Any], size: int) -> Answer:
        """A part of a list, and the address of the rest in the Link header."""
        start = int(call.query.get("cursor", ["0"])[0])
        if start + size >= len(items):
            return as_json(items[start:])
        kept = {name: values for name, values in call.query.items() if name != "cursor"}
        rest = urllib.parse.urlencode({**kept, "cursor": start + size}, doseq=True)
        address = call.request.path.partition("?")[0]
        return as_json(items[start : start + size], headers={"Link": f'<{self.url}{address}?{rest}>; rel="next"'})

    @route("GET HEAD", rf"/{PAGE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def resolve(self, call: Call) -> Answer:
        """A file's content, whole or the asked range, with what the client's cache goes by."""
        commit = self._repo(call).at(call.groups["revision"])
        path = call.groups["path"]
        entry = commit.files.get(path)
        if entry is None:
            raise HubError(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.oid)
        headers = {
            "X-Repo-Commit": commit.oid,
            "ETag": f'"{entry.etag}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
            "Content-Disposition": f'inline; filename="{path.rsplit("/", 1)[-1]}"',
        }
        if entry.lfs:
            headers |= {"X-Linked-Size": str(entry.size), "X-Linked-ETag": f'"{entry.etag}"'}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", call.request.headers.get("range", ""))
        if asked is None or not any(asked.groups()):
            return Answer(200, entry.data, headers)
        if asked[1]:
            start, stop = int(asked[1]), min(int(asked[2] or entry.size) + 1, entry.size)
        else:
            start, stop = max(0, entry.size - int(asked[2])), entry.size
        if start >= stop:
            raise HubError(416, "Range not satisfiable", Content_Range=f"bytes */{entry.size}")
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{entry.size}"
        return Answer(206, entry.data[start:stop], headers)

    @route("GET HEAD", r"/[^/]+/resolve/.+")
    def resolve_without_namespace(self, call: Call) -> Answer:
        raise HubError(404 if call.user else 401, "Repository not found", "RepoNotFound")

    # ------------------------------------------------------------------ commits

    @route("POST", rf"/api/{REPO}/preupload/(?P<revision>[^/]+)")
    def preupload(self, call: Call) -> Answer:
        repo = self._repo(call, write=True)
        head, asked = repo.at(call.groups["revision"]), call.json()
        ignore = asked.get("gitIgnore")
        if ignore is None and ".gitignore" in head.files:
            ignore = head.files[".gitignore"].data.decode()
        rules = [line.strip() for line in (ignore or "").splitlines() if line.strip() and not line.startswith("#")]
        answers = []
        for file in asked["files"]:
            path, there = file["path"], head.files.get(file["path"])
            lfs = self._is_lfs(head, path, base64.b64decode(file["sample"]), file["size"])
            item = {"path": path, "uploadMode": "lfs" if lfs else "regular"}
            item["shouldIgnore"] = any(_pattern_matches(rule.strip("/"), path) for rule in rules)
            answers.append({**item, **({"oid": there.etag} if there else {})})
        return as_json({"files": answers, "commitOid": head.oid})

    @staticmethod
    def _is_lfs(head: Commit, path: str, sample: bytes, size: int) -> bool:
        attributes = head.files.get(".gitattributes")
        lines = attributes.data.decode().splitlines() if attributes else []
        patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
        return size > LFS_FROM_BYTES or b"\0" in sample[:512] or any(_pattern_matches(p, path) for p in patterns)

    @route("POST", rf"/api/{REPO}/commit/(?P<revision>[^/]+)")
    def commit(self, call: Call) -> Answer:
        """Apply all operations or none."""
        repo, branch = self._repo(call, write=True), call.groups["revision"]
        if call.flag("create_pr"):
            raise HubError(501, "The tests' hub does not serve pull requests")
        if branch not in repo.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        head = repo.at(branch)
        files, header = dict(head.files), {}
        for line in call.body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                header = value
            else:
                self._apply(repo, files, key, value)
        if not header.get("summary"):
            raise HubError(400, "The commit has no summary")
        if header.get("parentCommit") not in (None, head.oid):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        assert call.user is not None
        made = repo.add(branch, files, header["summary"], header.get("description", ""), call.user.name)
        url = f"{self.url}/{repo.key}/commit/{made.oid}"
        return as_json({"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": ""})

    @staticmethod
    def _apply(repo: Repo, files: dict[str, Entry], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if path.startswith("/") or any(part in ("", ".", "..", ".git") for part in path.rstrip("/").split("/")):
            raise HubError(400, f"Invalid path: {path}")
        if key == "file":
            try:
                files[path] = Entry.of(base64.b64decode(value["content"], validate=True), False)
            except binascii.Error:
                raise HubError(400, f"The content of {path} is not base64") from None
        elif key == "lfsFile":
            data = repo.blobs.get(value["oid"])
            if data is None or value.get("size", len(data)) != len(data):
                raise HubError(400, f"LFS pointer of {path} points to a file that was not uploaded")
            files[path] = Entry.of(data, True)
        elif key in ("deletedFile", "deletedFolder"):
            gone = [name for name in files if name == path] if key == "deletedFile" else []
            if key == "deletedFolder":
                gone = [name for name in files if name.startswith(path.rstrip("/") + "/")]
            if not gone:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]
        else:
            raise HubError(400, f"Unknown operation {key}")

    # ------------------------------------------------------------------ large files by LFS

    @route("POST", rf"/{PAGE}\.git/info/lfs/objects/batch")
    def lfs_batch(self, call: Call) -> Answer:
        repo = self._repo(call, write=True)
        asked = call.json()
        if asked["operation"] != "upload" or "basic" not in asked.get("transfers", ["basic"]):
            raise HubError(501, "The tests' hub serves LFS uploads by the basic transfer alone")
        objects = []
        for wanted in asked["objects"]:
            item = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in repo.blobs:
                # As with a signed address of a bucket, the address is the permission: the client sends no token.
                base = f"{self.url}/lfs/{self._secret}/{repo.type}s/{repo.id}/{wanted['oid']}"
                item["actions"] = {"upload": {"href": base}, "verify": {"href": f"{base}/verify"}}
            objects.append(item)
        return as_json({"transfer": "basic", "objects": objects})

    @route("PUT", rf"/lfs/(?P<secret>[^/]+)/{REPO}/(?P<oid>[0-9a-f]{{64}})")
    def lfs_upload(self, call: Call) -> Answer:
        repo = self._signed(call)
        if hashlib.sha256(call.body).hexdigest() != call.groups["oid"]:
            raise HubError(400, "BadDigest: the content does not have the announced sha256")
        repo.blobs[call.groups["oid"]] = call.body
        return Answer(200)

    @route("POST", rf"/lfs/(?P<secret>[^/]+)/{REPO}/(?P<oid>[0-9a-f]{{64}})/verify")
    def lfs_verify(self, call: Call) -> Answer:
        blob = self._signed(call).blobs.get(call.groups["oid"])
        if blob is None or call.json() != {"oid": call.groups["oid"], "size": len(blob)}:
            raise HubError(404, "The object was not uploaded", "EntryNotFound")
        return as_json({})

    def _signed(self, call: Call) -> Repo:
        prefix = "" if call.groups["kind"] == "models" else f"{call.groups['kind']}/"
        repo = self._repos.get(f"{prefix}{call.groups['namespace']}/{call.groups['name']}")
        if repo is None or call.groups["secret"] != self._secret:
            raise HubError(403, "SignatureDoesNotMatch")
        return repo

    # ------------------------------------------------------------------ large files by Xet

    @route("GET", rf"/api/{REPO}/xet-write-token/(?P<revision>[^/]+)")
    def xet_token(self, call: Call) -> Answer:
        repo = self._repo(call, write=True)
        repo.at(call.groups["revision"])
        token, until = secrets.token_hex(16), int(time.time()) + 3600
        self._xet_tokens[token] = repo
        cas = f"{self.url}/cas/{self._secret}"
        headers = {"X-Xet-Cas-Url": cas, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(until)}
        return as_json({"casUrl": cas, "accessToken": token, "exp": until}, headers=headers)

    @route("GET", r"/cas/[^/]+/v1/chunks/[^/]+/(?P<hash>[0-9a-f]+)")
    def xet_known_chunk(self, call: Call) -> Answer:
        """No chunk is ever known from elsewhere, so everything is sent."""
        raise HubError(404, "Chunk not found")

    @route("POST", r"/cas/[^/]+/v1/xorb-grants/.+", r"/cas/[^/]+/v2/shards")
    def xet_newer_way(self, call: Call) -> Answer:
        """Refused, whereupon hf_xet falls back to the plain uploads below."""
        raise HubError(404, "Not served")

    @route("POST", r"/cas/[^/]+/v1/xorbs/[^/]+/(?P<hash>[0-9a-f]{64})")
    def xet_upload(self, call: Call) -> Answer:
        """Take in a xorb, which is a pack of chunks."""
        self._xet_repo(call)
        new = call.groups["hash"] not in self._xorbs
        self._xorbs[call.groups["hash"]] = call.body
        return as_json({"was_inserted": new})

    @route("POST", r"/cas/[^/]+/v1/shards")
    def xet_register(self, call: Call) -> Answer:
        """Take in a shard, which says of which chunks the files consist, and put the files together."""
        repo = self._xet_repo(call)
        for sha256, segments in files_of_shard(call.body):
            parts = []
            for xorb, first, last in segments:
                if xorb not in self._xorbs:
                    raise HubError(400, f"The shard names a xorb that was not uploaded: {xorb}")
                parts += list(chunks_of_xorb(self._xorbs[xorb]))[first:last]
            data = b"".join(parts)
            if hashlib.sha256(data).hexdigest() != sha256:
                raise HubError(400, "The chunks do not have the announced sha256")
            repo.blobs[sha256] = data
        return as_json({"result": 1})

    def _xet_repo(self, call: Call) -> Repo:
        repo = self._xet_tokens.get(call.bearer or "")
        if repo is None:
            raise HubError(401, "Invalid Xet token")
        return repo

    @route("POST", r"(?:/cas/[^/]+)?/v1/telemetry")
    def telemetry(self, call: Call) -> Answer:
        return Answer(200)


def _matches(methods: str, pattern: re.Pattern[str], request: Request) -> bool:
    return request.method in methods.split() and pattern.fullmatch(request.path.partition("?")[0]) is not None


def _pattern_matches(pattern: str, path: str) -> bool:
    """Whether a line of .gitattributes or .gitignore means a file: by its name, its path or a folder above it."""
    folders = [path[: match.start()] for match in re.finditer("/", path)]
    names = [path.rsplit("/", 1)[-1], path, *folders]
    return any(fnmatch.fnmatchcase(name, pattern.replace("**/*", "*")) for name in names)


def refusal(error: HubError) -> Answer:
    headers = {"X-Error-Message": error.message, **error.headers}
    if error.code:
        headers["X-Error-Code"] = error.code
    answer = as_json({"error": error.message}, error.status)
    return Answer(answer.status, answer.body, {**answer.headers, **headers})


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


# ---------------------------------------------------------------------- the formats of Xet


def files_of_shard(shard: bytes) -> Iterator[tuple[str, list[tuple[str, int, int]]]]:
    """The sha256 of each file of a shard and its segments: a xorb, its first chunk, and the one after its last.

    A shard is a row of records of 48 bytes after a header of that size. Each file has a record for itself, one for
    each segment, as many again for their check sums if a flag says so, and one for the sha256; 32 bytes of ones end it.
    """
    at = 48
    while (name := shard[at : at + 32]) != b"\xff" * 32:
        if len(name) < 32:
            raise HubError(400, "The shard ends early")
        flags, count = struct.unpack_from("<II", shard, at + 32)
        at += 48
        segments = []
        for start in range(at, at + 48 * count, 48):
            first, last = struct.unpack_from("<II", shard, start + 40)
            segments.append((xet_hex(shard[start : start + 32]), first, last))
        at += 48 * count * (2 if flags & 1 << 31 else 1)
        if not flags & 1 << 30:
            raise HubError(400, "The shard has a file without its sha256")
        yield xet_hex(shard[at : at + 32]), segments
        at += 48


def xet_hex(name: bytes) -> str:
    """A hash as Xet writes it: as four little-endian numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", name))


def chunks_of_xorb(xorb: bytes) -> Iterator[bytes]:
    """The chunks of a xorb. Each follows a header with its packed length, the kind of packing and its true length."""
    at = 0
    while at < len(xorb):
        packed, kind = int.from_bytes(xorb[at + 1 : at + 4], "little"), xorb[at + 4]
        length = int.from_bytes(xorb[at + 5 : at + 8], "little")
        chunk = xorb[at + 8 : at + 8 + packed]
        if kind:
            chunk = unpack_lz4(chunk)
        if kind == 2:  # the bytes of numbers of four bytes, sorted by their place in the number
            mixed, start = bytearray(len(chunk)), 0
            for place in range(4):
                stop = start + len(mixed[place::4])
                mixed[place::4] = chunk[start:stop]
                start = stop
            chunk = bytes(mixed)
        if len(chunk) != length:
            raise HubError(400, "A chunk of the xorb does not have the announced length")
        yield chunk
        at += 8 + packed


def unpack_lz4(frame: bytes) -> bytes:
    """The content of a frame of LZ4, which the standard library does not know. Check sums are passed over."""
    if frame[:4] != b"\x04\x22\x4d\x18":
        raise HubError(400, "Not a frame of LZ4")
    flags = frame[4]
    at = 7 + (8 if flags & 8 else 0) + (4 if flags & 1 else 0)
    out = bytearray()
    while size := int.from_bytes(frame[at : at + 4], "little"):
        at += 4
        block = frame[at : at + (size & 0x7FFFFFFF)]
        if size >> 31:
            out += block
        else:
            _unpack_lz4_block(block, out)
        at += len(block) + (4 if flags & 16 else 0)
    return bytes(out)


def _unpack_lz4_block(block: bytes, out: bytearray) -> None:
    at = 0

    def long_count(count: int) -> int:
        nonlocal at
        if count == 15:
            while True:
                more = block[at]
                at += 1
                count += more
                if more != 255:
                    break
        return count

    while at < len(block):
        token = block[at]
        at += 1
        literals = long_count(token >> 4)
        out += block[at : at + literals]
        at += literals
        if at >= len(block):  # the last sequence has no match
            return
        offset = int.from_bytes(block[at : at + 2], "little")
        at += 2
        length = long_count(token & 15) + 4
        seen = bytes(out[-offset:] if offset <= length else out[-offset : length - offset])
        out += (seen * (length // len(seen) + 1))[:length]


# ---------------------------------------------------------------------- sockets


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, hub: HubServer) -> None:
        self.hub = hub
        self.open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def end_connections(self) -> None:
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Failures are raised when the server is left; a client that went away is none."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body leave together
    server: _Server

    def do_GET(self) -> None:
        hub = self.server.hub
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, time.time(), "authorization" in headers, headers=headers)
        self.request_log, self.rate = request, 0.0
        fault = hub.receive(request)
        try:
            self._serve(hub, request, fault)
        except (DisconnectedError, ConnectionError, TimeoutError):
            self._drop()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _serve(self, hub: HubServer, request: Request, fault: Fault | None) -> None:
        body, pieces = bytearray(), self._pieces()
        if fault is not None:
            self.rate = fault.trickle
            while len(body) < fault.read and (piece := next(pieces, b"")):
                body += piece
            fault.arrived.set()
            if fault.callback is not None:
                fault.callback(request)
            hub.pause(fault.delay)
            if fault.hold is not None:
                hub.wait_for(fault.hold)
            if fault.drop:
                return self._drop(reset=fault.drop == "reset")
        for piece in pieces:
            body += piece
        if fault is None or fault.status is None:
            answer = hub.answer(request, bytes(body))
        else:
            answer = self._refused(fault, fault.status)
        if fault is not None and fault.lose_answer:
            return self._drop()
        self._send(answer, fault.cut if fault else None)

    @staticmethod
    def _refused(fault: Fault, status: int) -> Answer:
        answer = refusal(HubError(status, fault.message, fault.code))
        headers = {**answer.headers, **fault.headers}
        if fault.retry_after is not None:
            headers["Retry-After"] = str(fault.retry_after)
        return Answer(status, answer.body if fault.body is None else json.dumps(fault.body).encode(), headers)

    def _pieces(self) -> Iterator[bytes]:
        """The body as it comes in."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while length := int(self._line().split(b";")[0], 16):
                yield from self._exactly(length)
                self._line()
            while self._line().strip():
                pass
        else:
            yield from self._exactly(int(self.headers.get("Content-Length") or 0))

    def _line(self) -> bytes:
        line = self.rfile.readline(65536)
        if not line:
            raise DisconnectedError
        return line

    def _exactly(self, length: int) -> Iterator[bytes]:
        while length:
            piece = self.rfile.read1(min(length, self._step()))
            if not piece:
                raise DisconnectedError
            length -= len(piece)
            self.request_log.received += len(piece)
            yield piece
            self._wait_for_rate(len(piece))

    def _step(self) -> int:
        return max(1, int(self.rate / 20)) if self.rate else 65536

    def _wait_for_rate(self, length: int) -> None:
        if self.rate:
            self.server.hub.pause(length / self.rate)

    def _send(self, answer: Answer, cut: int | None) -> None:
        self.request_log.status = answer.status
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        body = memoryview(b"" if self.command == "HEAD" else answer.body)[:cut]
        for start in range(0, len(body), self._step()):
            piece = body[start : start + self._step()]
            self.wfile.write(piece)
            if self.rate:
                self.wfile.flush()
                self._wait_for_rate(len(piece))
        self.wfile.flush()
        if cut is not None:
            # Closed and not reset: a reset could take away what the client has not read yet.
            self.close_connection = True

    def _drop(self, reset: bool = True) -> None:
        self.close_connection = True
        if reset:
            # Closing with a linger of zero sends RST, as when a machine on the way dies.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """The log is `HubServer.requests`."""


# ---------------------------------------------------------------------- the client in the tests' own process


@contextlib.contextmanager
def local_client(home: Path, *, xet: bool = True) -> Iterator[list[float]]:
    """Keep this process's client from the user's log-in and caches, and let it repeat requests at once.

    The list gets the seconds that huggingface_hub would have waited before each repetition; hf_xet's own waits are
    only shortened. The endpoint is fixed when huggingface_hub is imported, so pass `HfApi(endpoint=hub.url)`.
    """
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http, _xet

    waits: list[float] = []
    clock = SimpleNamespace(**{**vars(time), "sleep": waits.append})
    variables = {"HF_TOKEN": "", "HF_XET_CACHE": str(home / "xet"), "HF_XET_CLIENT_RETRY_BASE_DELAY": XET_DELAY}
    values: dict[str, Any] = {
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_DISABLE_XET": not xet,
        "HF_HUB_OFFLINE": False,
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, variables))
        stack.enter_context(mock.patch.multiple(constants, **values))
        for module in (_http, file_download):
            stack.enter_context(mock.patch.object(module, "time", clock))
        # The session has read its settings from the environment; a new one is made when needed.
        _xet.abort_xet_session()
        stack.callback(_xet.abort_xet_session)
        yield waits
