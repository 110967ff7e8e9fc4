"""The tests' Hub against the real client: what it stores, refuses and breaks is what a program would meet."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hub_server import Fault, HubServer, User, local_client

MODEL = "alice/model"
USERS = {
    "write": User("alice", orgs={"team": "write", "readers": "read"}),
    "read": User("alice", orgs={"team": "write"}, role="read"),
    "fine": User("alice", role="fineGrained", scopes={"alice/model": ["repo.write"]}),
    "other": User("bob"),
}
WEIGHTS = bytes(range(256)) * 1000
FILES = {"config.json": b"{}", "README.md": b"---\nlicense: mit\n---\n# A model\n", "sub/notes.txt": b"one\n"}
FILES |= {"model.safetensors": WEIGHTS}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(USERS) as server:
        yield server


@pytest.fixture
def waits(tmp_path: Path) -> Iterator[list[float]]:
    with local_client(tmp_path / "home") as waited:
        yield waited


@pytest.fixture
def api(hub: HubServer, waits: list[float]) -> HfApi:
    return HfApi(endpoint=hub.url, token="write")


def refused(call: Any, *args: Any, **options: Any) -> int:
    """The status with which a call of the client is refused; 0 when it is not."""
    try:
        call(*args, **options)
    except HfHubHTTPError as error:
        return error.response.status_code
    return 0


def upload(api: HfApi, files: dict[str, bytes], **options: Any) -> str:
    operations = [CommitOperationAdd(name, data) for name, data in files.items()]
    return str(api.create_commit(MODEL, operations, commit_message="Step 1", **options).oid)


@pytest.mark.parametrize(
    ("token", "name", "create", "write"),
    [
        pytest.param("write", MODEL, 0, 0, id="one's own"),
        pytest.param("read", MODEL, 403, 403, id="a token that may only read"),
        pytest.param("fine", MODEL, 403, 0, id="a token for this repository"),
        pytest.param("fine", "alice/second", 403, 403, id="a token for another repository"),
        pytest.param("other", MODEL, 403, 403, id="somebody else's"),
        pytest.param("nonsense", MODEL, 401, 401, id="an unknown token"),
        pytest.param(False, MODEL, 401, 401, id="no token"),
        pytest.param("write", "team/model", 0, 0, id="an organisation"),
        pytest.param("write", "readers/model", 403, 403, id="an organisation in which one reads"),
    ],
)
def test_who_may_create_and_write(hub: HubServer, api: HfApi, token: str | bool, name: str, create: int, write: int):
    assert refused(api.create_repo, name, token=token) == create
    if create:
        hub.put(name, {})
    assert refused(api.auth_check, name, write=True, token=token) == write
    options = {"path_or_fileobj": b"x", "path_in_repo": "x.txt", "repo_id": name, "token": token}
    assert refused(api.upload_file, **options) == write
    assert hub.repo(name).files() == ({} if write else {"x.txt": b"x"})


def test_whoami_and_a_private_repository(hub: HubServer, api: HfApi):
    told = api.whoami()
    assert (told["name"], told["auth"]["accessToken"]["role"]) == ("alice", "write")
    assert {org["name"]: org["roleInOrg"] for org in told["orgs"]} == USERS["write"].orgs
    assert api.create_repo("model", private=True) == f"{hub.url}/{MODEL}"
    assert refused(api.create_repo, MODEL) == 409
    assert api.create_repo(MODEL, exist_ok=True).repo_id == MODEL
    upload(api, FILES)
    for token in (False, "other"):
        with pytest.raises(RepositoryNotFoundError):
            api.hf_hub_download(MODEL, "config.json", token=token)
    assert api.repo_exists(MODEL, token="read")


def test_what_is_uploaded_to_a_branch_comes_back_whole(hub: HubServer, api: HfApi, tmp_path: Path):
    hub.put(MODEL, {"old.txt": b"old"})
    before = hub.repo(MODEL).revisions()["main"]
    api.create_branch(MODEL, branch="step-1")
    assert refused(api.create_branch, MODEL, branch="step-1") == 409
    oid = upload(api, FILES, revision="step-1")
    repo = hub.repo(MODEL)
    assert repo.files("step-1") == {**FILES, "old.txt": b"old"}
    assert repo.revisions() == {"main": before, "step-1": oid}
    assert {ref.name: ref.target_commit for ref in api.list_repo_refs(MODEL).branches} == repo.revisions()
    assert [request.route for request in hub.requests].count("lfs_upload") == 1
    folder = Path(api.snapshot_download(MODEL, revision="step-1", local_dir=tmp_path / "copy", ignore_patterns="*.md"))
    names = {"config.json", "sub/notes.txt", "model.safetensors", "old.txt"}
    assert {name: (folder / name).read_bytes() for name in names} == {name: repo.files(oid)[name] for name in names}
    assert not (folder / "README.md").exists()
    assert upload(api, FILES, revision="step-1") == oid, "nothing has changed, so nothing is committed"
    assert set(api.list_repo_files(MODEL, revision="step-1")) == {*repo.files("step-1"), ".gitattributes"}


def test_what_is_not_there_is_told_apart(hub: HubServer, api: HfApi):
    hub.put(MODEL, FILES)
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download(MODEL, "none")
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(MODEL, "config.json", revision="none")
    with pytest.raises(RevisionNotFoundError):
        upload(api, FILES, revision="none")
    lines = b'{"key": "header", "value": {"summary": "s"}}\n{"key": "lfsFile", "value": {"path": "w.bin", "oid": "ab"}}'
    headers = {"authorization": "Bearer write"}
    answer = httpx.post(f"{hub.url}/api/models/{MODEL}/commit/main", content=lines, headers=headers)
    assert answer.status_code == 400, "its file was not uploaded"
    assert hub.repo(MODEL).files() == FILES


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        pytest.param(Fault("/preupload/", status=503, times=3), [1, 2, 4], id="refused"),
        pytest.param(Fault("/preupload/", drop="close"), [1], id="hung up"),
        pytest.param(Fault("^/lfs/", "PUT", drop="reset", read=100_000), [1], id="reset in the middle of a file"),
        pytest.param(Fault("/verify$", status=500), [1], id="refused after the file"),
    ],
)
def test_what_the_client_repeats_by_itself(
    hub: HubServer, api: HfApi, waits: list[float], fault: Fault, expected: list[float]
):
    api.create_repo(MODEL)
    hub.inject(fault)
    upload(api, FILES)
    assert waits == expected
    assert hub.repo(MODEL).files() == FILES


def test_what_the_client_does_not_repeat(hub: HubServer, api: HfApi, waits: list[float]):
    api.create_repo(MODEL)
    for route, status in (("/refs$", 500), ("/branch/", 429)):
        fault = hub.inject(Fault(route, status=status, times=None))
        call = api.list_repo_refs if status == 500 else lambda name: api.create_branch(name, branch="b")
        assert [refused(call, MODEL), fault.hits] == [status, 1]
    hub.clear_faults()
    hub.inject(Fault("/commit/", lose_answer=True))
    with pytest.raises(httpx.TransportError):
        upload(api, {"x.txt": b"x"})
    assert waits == []
    assert hub.repo(MODEL).files() == {"x.txt": b"x"}, "the commit was made all the same"
    assert hub.requests[-1].status is None


def test_an_upload_is_held_until_it_is_let_go(hub: HubServer, api: HfApi):
    api.create_repo(MODEL)
    fault = hub.inject(Fault("^/lfs/", "PUT", read=1000, hold=threading.Event()))
    thread = threading.Thread(target=upload, args=(api, FILES), daemon=True)
    thread.start()
    assert fault.arrived.wait(20)
    assert refused(api.model_info, MODEL) == 0, "other requests are served meanwhile"
    assert hub.repo(MODEL).files() == {}
    assert fault.hold is not None
    fault.hold.set()
    thread.join(20)
    assert hub.repo(MODEL).files() == FILES


def test_leaving_the_server_ends_what_is_held_and_raises_what_broke():
    with HubServer(USERS) as hub:
        fault = hub.inject(Fault("", hold=threading.Event()))
        ended: list[Exception] = []

        def ask() -> None:
            try:
                httpx.get(f"{hub.url}/api/models/{MODEL}", timeout=20)
            except httpx.TransportError as error:
                ended.append(error)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        assert fault.arrived.wait(10)
        begun = time.monotonic()
    thread.join(10)
    assert ended
    assert time.monotonic() - begun < 5
    with pytest.raises(httpx.ConnectError):
        httpx.get(hub.url)

    broken = HubServer(USERS).__enter__()
    broken.put(MODEL, FILES).__dict__["files"] = None
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{broken.url}/api/models/{MODEL}")
    with pytest.raises(TypeError, match="NoneType"):
        broken.__exit__(None, None, None)
