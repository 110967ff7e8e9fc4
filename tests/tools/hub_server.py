"""A Hugging Face Hub in miniature on 127.0.0.1, for tests that need the real client without a network.

It keeps model repositories in memory and speaks what huggingface_hub speaks with Xet turned off (HF_HUB_DISABLE_XET=1,
which `environment` and `local_client` set). `HubServer.inject` breaks single requests.

    with HubServer({"token-a": User("alice", orgs={"team": "write"})}) as hub:
        HfApi(endpoint=hub.url, token="token-a").create_repo("alice/model")
        hub.repo("alice/model").files()

Where it differs from huggingface.co on purpose: downloads are answered in place, without a redirect to a CDN, and a
missing repository names that cause in a header, because the client looks for it only at addresses with https.
"""

from __future__ import annotations

import base64
import contextlib
import fnmatch
import hashlib
import http.server
import json
import os
import re
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest import mock

LFS_NAMES = "*.bin *.model *.npz *.pkl *.pt *.pth *.safetensors *.zip *tfevents*".split()
GITATTRIBUTES = "".join(f"{name} filter=lfs diff=lfs merge=lfs -text\n" for name in LFS_NAMES).encode()
REPO = r"(?P<name>[^/]+/[^/]+)"


@dataclass(frozen=True)
class User:
    """The owner of a token. `orgs` maps organisations to a role: read or write.

    A `fineGrained` token may write only where `scopes` says "repo.write", by namespace ("alice") or repository.
    """

    name: str
    orgs: Mapping[str, str] = field(default_factory=dict)
    role: Literal["read", "write", "fineGrained"] = "write"
    scopes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def may_write(self, repo_id: str) -> bool:
        namespace = repo_id.split("/")[0]
        scopes = {*self.scopes.get(namespace, ()), *self.scopes.get(repo_id, ())}
        may = self.role == "write" or (self.role == "fineGrained" and "repo.write" in scopes)
        return may and (namespace == self.name or self.orgs.get(namespace) == "write")


@dataclass
class Request:
    """One line of the log. `route` says what it was for; `status` stays None when no answer was sent."""

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    route: str = ""
    status: int | None = None
    body: bytes = field(default=b"", repr=False)

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None

    def json(self) -> Any:
        return json.loads(self.body or b"{}")


@dataclass
class Fault:
    """What happens to the next `times` requests (None: to all) that match `method` and, by search, `path`.

    In this order: `read` bytes of the body are taken in, `arrived` is set, `callback` is called with the request,
    `delay` seconds pass, and `hold` is waited for. Then the connection is dropped (`drop`), or `status` is answered,
    or the request is served as usual, with `lose_answer` without its answer. A process that `callback` kills leaves
    behind what it had handed to the system: that still comes in.
    """

    path: str = ""
    method: str = ""
    times: int | None = 1
    read: int = 0
    callback: Callable[[Request], object] | None = None
    delay: float = 0
    hold: threading.Event | None = None
    drop: Literal["", "close", "reset"] = ""
    status: int | None = None
    lose_answer: bool = False
    hits: int = field(default=0, init=False)
    arrived: threading.Event = field(default_factory=threading.Event, init=False)

    def matches(self, request: Request) -> bool:
        is_spent = self.times is not None and self.hits >= self.times
        return not is_spent and self.method in ("", request.method) and re.search(self.path, request.path) is not None


class RefusedError(Exception):
    """A refusal, with the word by which the client tells one 404 from another."""

    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.code = status, code


class DisconnectedError(Exception):
    """The client is gone, or the server is closing."""


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def as_json(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, json.dumps(data).encode(), {"Content-Type": "application/json", **(headers or {})})


def refusal(error: RefusedError) -> Answer:
    headers = {"X-Error-Message": str(error), **({"X-Error-Code": error.code} if error.code else {})}
    return as_json({"error": str(error)}, error.status, headers)


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    """Whether a file is uploaded by LFS, as the rules of a new repository on the Hub say."""
    name = path.rsplit("/", 1)[-1]
    return size > 10 * 2**20 or b"\0" in sample or any(fnmatch.fnmatchcase(name, pattern) for pattern in LFS_NAMES)


def oid_of(path: str, data: bytes) -> str:
    """The name of a content by which the client sees that nothing has changed."""
    if is_lfs(path, len(data), data[:512]):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    files: Mapping[str, bytes] = field(repr=False)


@dataclass
class Repo:
    """A repository as the server holds it. Commits are whole: a reader sees the one before or the one after."""

    id: str
    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict, repr=False)  # uploaded large files by sha256

    def revisions(self) -> dict[str, str]:
        """The branches and the commits they point to."""
        return {name: commits[-1].oid for name, commits in self.branches.items()}

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Every file at a branch or commit, without the .gitattributes that each new repository gets."""
        return {name: data for name, data in sorted(self.at(revision).files.items()) if name != ".gitattributes"}

    def commits(self, branch: str = "main") -> list[Commit]:
        """The history from the newest commit to the oldest."""
        return self.branches[branch][::-1]

    def at(self, revision: str) -> Commit:
        if revision in self.branches:
            return self.branches[revision][-1]
        for commits in self.branches.values():
            for commit in commits:
                if commit.oid == revision:
                    return commit
        raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def add(self, branch: str, files: Mapping[str, bytes], title: str) -> Commit:
        history = self.branches.setdefault(branch, [])
        contents = [(name, oid_of(name, data)) for name, data in sorted(files.items())]
        oid = hashlib.sha1(repr((self.id, branch, len(history), title, contents)).encode()).hexdigest()
        history.append(Commit(oid, title, dict(files)))
        return history[-1]


@dataclass
class Call:
    """A request on its way to a route: the named groups of its address, its sender."""

    request: Request
    groups: dict[str, str]
    user: User | None


Route = Callable[["HubServer", Call], Answer]
ROUTES: list[tuple[str, re.Pattern[str], Route]] = []


def route(methods: str, *patterns: str) -> Callable[[Route], Route]:
    """Enters a method of HubServer in the table of routes. Patterns match the address as sent, still quoted."""

    def enter(function: Route) -> Route:
        ROUTES.extend((methods, re.compile(pattern), function) for pattern in patterns)
        return function

    return enter


class HubServer:
    """The server; a context manager. `users` maps tokens to users."""

    def __init__(self, users: Mapping[str, User]) -> None:
        self.users = dict(users)
        self.requests: list[Request] = []
        self._faults: list[Fault] = []
        self._repos: dict[str, Repo] = {}
        self._failures: list[Exception] = []
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="hub", daemon=True)

    # ---- what tests use --------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def inject(self, fault: Fault) -> Fault:
        """Applies a fault from now on. Of several that match a request, the one injected first acts."""
        self._faults.append(fault)
        return fault

    def clear_faults(self) -> None:
        self._faults.clear()

    def repo(self, repo_id: str) -> Repo:
        """The repository; KeyError when there is none."""
        return self._repos[repo_id]

    def repos(self) -> list[str]:
        return sorted(self._repos)

    def put(self, repo_id: str, files: Mapping[str, bytes], revision: str = "main", *, private: bool = False) -> Commit:
        """Commits files on the server's side. Repository and branch are made when missing."""
        with self._lock:
            repo = self._repos.get(repo_id) or self._create(repo_id, private)
            repo.branches.setdefault(revision, list(repo.branches["main"]))
            return repo.add(revision, {**repo.at(revision).files, **files}, "Files put by the test")

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Environment variables that send a program's client here, with its caches and its log-in under `home`."""
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub")}
        own |= {"HF_TOKEN_PATH": str(home / "token"), "HF_TOKEN": token or "", "HF_HUB_DISABLE_XET": "1"}
        online = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "0")
        quiet = dict.fromkeys(("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"), "1")
        return own | online | quiet | dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1")

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """Lets held requests go without an answer and frees the port; raises what broke in the server."""
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.end_connections()
        if kind is None and self._failures:
            raise self._failures[0]

    # ---- requests --------------------------------------------------------------------------------------------------

    def receive(self, request: Request) -> Fault | None:
        """Logs a request and chooses the fault that acts on it."""
        with self._lock:
            found = self._find(request)
            request.route = found[0].__name__ if found else ""
            self.requests.append(request)
            fault = next((fault for fault in self._faults if fault.matches(request)), None)
            if fault is not None:
                fault.hits += 1
            return fault

    def wait(self, seconds: float, event: threading.Event | None) -> None:
        """Waits for a time and then for an event; raises DisconnectedError when the server closes meanwhile."""
        is_closing = self._closing.wait(seconds)
        while not is_closing and event is not None and not event.wait(0.02):
            is_closing = self._closing.is_set()
        if is_closing:
            raise DisconnectedError

    @staticmethod
    def _find(request: Request) -> tuple[Route, dict[str, str]] | None:
        for methods, pattern, function in ROUTES:
            found = pattern.fullmatch(request.path.partition("?")[0])
            if found is not None and request.method in methods.split():
                return function, {key: urllib.parse.unquote(text) for key, text in found.groupdict().items() if text}
        return None

    def answer(self, request: Request) -> Answer:
        """Serves a request whose body has come in whole."""
        try:
            found = self._find(request)
            if found is None:
                raise RefusedError(501, f"The tests' hub does not serve {request.method} {request.path}")
            user = self.users.get(request.token) if request.token else None
            if request.token and user is None:
                raise RefusedError(401, "Invalid credentials in Authorization header")
            with self._lock:
                return found[0](self, Call(request, found[1], user))
        except RefusedError as error:
            return refusal(error)
        except Exception as error:
            self._failures.append(error)
            raise

    def _repo(self, call: Call, *, write: bool = False) -> Repo:
        """The repository of a call, if its sender may see it, and with `write` may change it."""
        repo, user = self._repos.get(call.groups["name"]), call.user
        namespace = call.groups["name"].split("/")[0]
        is_mine = user is not None and (namespace == user.name or namespace in user.orgs)
        if repo is None or (repo.private and not is_mine):
            raise RefusedError(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and (user is None or not user.may_write(repo.id)):
            raise RefusedError(403 if user else 401, f"You may not write to {repo.id}")
        return repo

    # ---- accounts and repositories ---------------------------------------------------------------------------------

    @route("GET", r"/api/whoami-v2")
    def whoami(self, call: Call) -> Answer:
        if call.user is None:
            raise RefusedError(401, "Invalid username or password.")
        orgs = [{"type": "org", "name": name, "roleInOrg": role} for name, role in call.user.orgs.items()]
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": call.user.role}}
        return as_json({"type": "user", "name": call.user.name, "orgs": orgs, "auth": auth})

    @route("POST", r"/api/repos/create")
    def create_repo(self, call: Call) -> Answer:
        asked = call.request.json()
        if call.user is None:
            raise RefusedError(401, "Invalid username or password.")
        repo_id = f"{asked.get('organization') or call.user.name}/{asked['name']}"
        if not call.user.may_write(repo_id.split("/")[0]):  # a scope for the repository alone is not enough
            raise RefusedError(403, f"You may not create {repo_id}")
        url = f"{self.url}/{repo_id}"
        if repo_id in self._repos:
            return as_json({"error": "You already created this model repo", "url": url}, 409)
        self._create(repo_id, asked.get("visibility") == "private" or bool(asked.get("private")))
        return as_json({"url": url, "name": repo_id, "id": repo_id})

    def _create(self, repo_id: str, private: bool) -> Repo:
        self._repos[repo_id] = repo = Repo(repo_id, private)
        repo.add("main", {".gitattributes": GITATTRIBUTES}, "initial commit")
        return repo

    @route("GET", rf"/api/models/{REPO}/auth-check(?P<write>/write)?")
    def auth_check(self, call: Call) -> Answer:
        self._repo(call, write="write" in call.groups)
        return as_json({})

    @route("GET", rf"/api/models/{REPO}", rf"/api/models/{REPO}/revision/(?P<revision>[^/]+)")
    def info(self, call: Call) -> Answer:
        repo = self._repo(call)
        commit = repo.at(call.groups.get("revision", "main"))
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        return as_json({"id": repo.id, "sha": commit.oid, "private": repo.private, "tags": [], "siblings": siblings})

    @route("GET", rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
    def tree(self, call: Call) -> Answer:
        commit, folder = self._repo(call).at(call.groups["revision"]), call.groups.get("path", "")
        above = f"{folder}/" if folder else ""
        found = {path: data for path, data in commit.files.items() if path.startswith(above)}
        if folder and not found:
            raise RefusedError(404, f"{folder} does not exist", "EntryNotFound")
        is_deep = "recursive=true" in call.request.path.lower()
        listed = {p: d for p, d in found.items() if is_deep or "/" not in p.removeprefix(above)}
        return as_json([{"type": "file", "path": p, "size": len(d), "oid": oid_of(p, d)} for p, d in listed.items()])

    @route("GET", rf"/api/models/{REPO}/refs")
    def refs(self, call: Call) -> Answer:
        heads = self._repo(call).revisions().items()
        branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid} for name, oid in heads]
        return as_json({"branches": branches, "tags": [], "converts": []})

    @route("POST", rf"/api/models/{REPO}/branch/(?P<branch>[^/]+)")
    def branch(self, call: Call) -> Answer:
        repo, name = self._repo(call, write=True), call.groups["branch"]
        if name in repo.branches:
            raise RefusedError(409, f"Reference already exists: refs/heads/{name}")
        repo.branches[name] = list(repo.branches[call.request.json().get("startingPoint") or "main"])
        return as_json({}, 201)

    @route("GET HEAD", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def resolve(self, call: Call) -> Answer:
        """A file's content, with what the client's cache goes by."""
        commit, path = self._repo(call).at(call.groups["revision"]), call.groups["path"]
        if path not in commit.files:
            missing = refusal(RefusedError(404, "Entry not found", "EntryNotFound"))
            return Answer(404, missing.body, {**missing.headers, "X-Repo-Commit": commit.oid})
        data = commit.files[path]
        return Answer(200, data, {"X-Repo-Commit": commit.oid, "ETag": f'"{oid_of(path, data)}"'})

    # ---- commits ---------------------------------------------------------------------------------------------------

    @route("POST", r"/api/validate-yaml")
    def validate_yaml(self, call: Call) -> Answer:
        """A card needs metadata between lines of dashes, as the Hub says by a warning."""
        is_bare = not call.request.json().get("content", "").startswith("---\n")
        return as_json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}] if is_bare else []})

    @route("POST", rf"/api/models/{REPO}/preupload/(?P<revision>[^/]+)")
    def preupload(self, call: Call) -> Answer:
        head, answers = self._repo(call, write=True).at(call.groups["revision"]), []
        for file in call.request.json()["files"]:
            path = file["path"]
            mode = "lfs" if is_lfs(path, file["size"], base64.b64decode(file["sample"])) else "regular"
            there = {"oid": oid_of(path, head.files[path])} if path in head.files else {}
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **there})
        return as_json({"files": answers})

    @route("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
    def lfs_batch(self, call: Call) -> Answer:
        repo, objects = self._repo(call, write=True), []
        for wanted in call.request.json()["objects"]:
            item = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in repo.blobs:
                # As with a signed address of a bucket, the address is the permission: the client sends no token.
                base = f"{self.url}/lfs/{repo.id}/{wanted['oid']}"
                item["actions"] = {"upload": {"href": base}, "verify": {"href": f"{base}/verify"}}
            objects.append(item)
        return as_json({"transfer": "basic", "objects": objects})

    @route("PUT", rf"/lfs/{REPO}/(?P<oid>[0-9a-f]{{64}})")
    def lfs_upload(self, call: Call) -> Answer:
        if hashlib.sha256(call.request.body).hexdigest() != call.groups["oid"]:
            raise RefusedError(400, "BadDigest: the content does not have the announced sha256")
        self._repos[call.groups["name"]].blobs[call.groups["oid"]] = call.request.body
        return Answer(200)

    @route("POST", rf"/lfs/{REPO}/(?P<oid>[0-9a-f]{{64}})/verify")
    def lfs_verify(self, call: Call) -> Answer:
        if call.groups["oid"] not in self._repos[call.groups["name"]].blobs:
            raise RefusedError(404, "The object was not uploaded", "EntryNotFound")
        return as_json({})

    @route("POST", rf"/api/models/{REPO}/commit/(?P<revision>[^/]+)")
    def commit(self, call: Call) -> Answer:
        """Applies all operations or none."""
        repo, branch = self._repo(call, write=True), call.groups["revision"]
        if branch not in repo.branches:
            raise RefusedError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        files, title = dict(repo.at(branch).files), ""
        for line in call.request.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                title = value["summary"]
            elif operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"], validate=True)
            elif operation["key"] == "lfsFile" and value["oid"] in repo.blobs:
                files[value["path"]] = repo.blobs[value["oid"]]
            else:
                raise RefusedError(400, f"{operation['key']} of {value['path']}: unknown, or its file is not there")
        made = repo.add(branch, files, title)
        return as_json({"success": True, "commitOid": made.oid, "commitUrl": f"{self.url}/{repo.id}/commit/{made.oid}"})


# ---- sockets -------------------------------------------------------------------------------------------------------


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
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers)
        try:
            self._serve(request, self.server.hub.receive(request) or Fault())
        except (DisconnectedError, ConnectionError, TimeoutError):
            self._drop(reset=True)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _serve(self, request: Request, fault: Fault) -> None:
        pieces = self._pieces()
        while len(request.body) < fault.read and (piece := next(pieces, b"")):
            request.body += piece
        fault.arrived.set()
        if fault.callback is not None:
            fault.callback(request)
        self.server.hub.wait(fault.delay, fault.hold)
        if fault.drop:
            return self._drop(reset=fault.drop == "reset")
        request.body += b"".join(pieces)
        if fault.status is None:
            answer = self.server.hub.answer(request)
        else:
            answer = refusal(RefusedError(fault.status, "Injected by the test"))
        if fault.lose_answer:
            return self._drop(reset=True)
        request.status = answer.status
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else answer.body)
        self.wfile.flush()

    def _pieces(self) -> Iterator[bytes]:
        """The body as it comes in."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while length := int(self.rfile.readline(65536).split(b";")[0] or b"0", 16):
                yield from self._exactly(length)
                self.rfile.readline(65536)
            self.rfile.readline(65536)
        else:
            yield from self._exactly(int(self.headers.get("Content-Length") or 0))

    def _exactly(self, length: int) -> Iterator[bytes]:
        while length:
            piece = self.rfile.read1(min(length, 65536))
            if not piece:
                raise DisconnectedError
            length -= len(piece)
            yield piece

    def _drop(self, reset: bool) -> None:
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


@contextlib.contextmanager
def local_client(home: Path) -> Iterator[list[float]]:
    """Keeps this process's client from the user's log-in and caches, and lets it repeat requests at once.

    The list gets the seconds that it would have waited before each repetition. The endpoint is fixed when
    huggingface_hub is imported, so pass `HfApi(endpoint=hub.url)`.
    """
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http

    waits: list[float] = []
    clock = SimpleNamespace(**{**vars(time), "sleep": waits.append})
    values = {"HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN_PATH": str(home / "token")}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, {"HF_TOKEN": ""}))
        stack.enter_context(mock.patch.multiple(constants, **values, HF_HUB_DISABLE_XET=True, HF_HUB_OFFLINE=False))
        for module in (_http, file_download):
            stack.enter_context(mock.patch.object(module, "time", clock))
        yield waits
