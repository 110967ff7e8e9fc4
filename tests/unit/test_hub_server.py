"""The tests' Hub against the real client: what it stores, refuses and breaks is what a program would meet."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import httpx
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hub_server import Fault, HubError, HubServer, User, local_client, unpack_lz4

ROOT = Path(__file__).resolve().parents[2]
MODEL = "alice/model"
USERS = {
    "write": User("alice", orgs={"team": "write", "readers": "read", "helpers": "contributor"}),
    "read": User("alice", orgs={"team": "write"}, role="read"),
    "fine": User("alice", role="fineGrained", scopes={"alice/model": ["repo.write"]}),
    "fine-all": User("alice", role="fineGrained", scopes={"alice": ["repo.write"]}),
    "other": User("bob"),
    "colleague": User("carol", orgs={"team": "read", "helpers": "contributor"}),
}
# Bytes of each kind that Xet packs in its own way: noise, repetition, and numbers of four bytes.
NOISE = os.urandom(300_000)
TEXT = b"countdown " * 30_000
NUMBERS = struct.pack("<100000f", *(n / 7 for n in range(100_000)))
WEIGHTS = NOISE + TEXT + NUMBERS
FILES = {"config.json": b"{}", "README.md": b"---\nlicense: mit\n---\n# A model\n", "sub/notes.txt": b"one\n"}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(USERS) as server:
        yield server
        assert server.unserved == []


@pytest.fixture(params=["xet", "lfs"])
def way(request: pytest.FixtureRequest) -> str:
    """How large files are uploaded."""
    return request.param


@pytest.fixture
def waits(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[float]]:
    xet = "way" in request.fixturenames and request.getfixturevalue("way") == "xet"
    with local_client(tmp_path / "home", xet=xet) as waited:
        yield waited


@pytest.fixture
def api(hub: HubServer, waits: list[float]) -> HfApi:
    return HfApi(endpoint=hub.url, token="write")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder like a saved model."""
    for name, data in {**FILES, "model.safetensors": WEIGHTS, "empty.bin": b""}.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(data)
    return tmp_path / "model"


def refused(call: object, *args: object, **options: object) -> int:
    """The status with which a call of the client is refused; 0 when it is not."""
    try:
        call(*args, **options)  # type: ignore[operator]
    except HfHubHTTPError as error:
        return error.response.status_code
    return 0


# ---------------------------------------------------------------------- accounts, rights and repositories


def test_whoami_tells_the_name_the_organisations_and_what_the_token_may_do(api: HfApi):
    told = api.whoami()
    assert told["name"] == "alice"
    assert {org["name"]: org["roleInOrg"] for org in told["orgs"]} == USERS["write"].orgs
    assert told["auth"]["accessToken"]["role"] == "write"
    fine = api.whoami(token="fine")["auth"]["accessToken"]
    assert fine["role"] == "fineGrained"
    assert fine["fineGrained"]["scoped"] == [
        {"entity": {"_id": MODEL, "type": "model", "name": MODEL}, "permissions": ["repo.write"]}
    ]


def test_an_unknown_token_is_refused_everywhere_even_where_none_is_needed(hub: HubServer, api: HfApi):
    hub.put(MODEL, FILES)
    for call, args in ((api.whoami, ()), (api.model_info, (MODEL,)), (api.create_repo, ("x",))):
        assert refused(call, *args, token="nonsense") == 401
    assert not hub.requests[-1].user
    assert hub.requests[-1].had_token


def test_a_token_can_be_withdrawn_while_the_server_runs(hub: HubServer, api: HfApi):
    api.create_repo(MODEL)
    del hub.users["write"]
    assert refused(api.upload_file, path_or_fileobj=b"x", path_in_repo="x", repo_id=MODEL) == 401
    assert hub.repo(MODEL).files() == {}


@pytest.mark.parametrize(
    ("token", "name", "create", "write"),
    [
        ("write", MODEL, 0, 0),
        ("read", MODEL, 403, 403),
        ("fine", MODEL, 403, 0),
        ("fine", "alice/second", 403, 403),
        ("fine-all", "alice/second", 0, 0),
        ("other", MODEL, 403, 403),
        (False, MODEL, 401, 401),
        ("write", "team/model", 0, 0),
        ("write", "readers/model", 403, 403),
        ("write", "strangers/model", 403, 403),
        ("colleague", "team/model", 403, 403),
        ("colleague", "helpers/own", 0, 0),
    ],
)
def test_who_may_create_and_write(hub: HubServer, api: HfApi, token: str | bool, name: str, create: int, write: int):
    assert refused(api.create_repo, name, token=token) == create
    if create:
        hub.put(name, {})
    assert refused(api.auth_check, name, write=True, token=token) == write
    upload = {"path_or_fileobj": b"x", "path_in_repo": "x.txt", "repo_id": name, "token": token}
    assert refused(api.upload_file, **upload) == write
    assert hub.repo(name).files() == ({} if write else {"x.txt": b"x"})


def test_a_contributor_may_not_write_what_others_created(hub: HubServer, api: HfApi):
    api.create_repo("helpers/model")
    assert refused(api.auth_check, "helpers/model", write=True, token="colleague") == 403
    assert refused(api.auth_check, "helpers/model", token="colleague") == 0


def test_a_private_repository_does_not_exist_for_others(hub: HubServer, api: HfApi):
    api.create_repo(MODEL, private=True)
    assert hub.repo(MODEL).private
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=MODEL)
    for token in (False, "other"):
        assert not api.repo_exists(MODEL, token=token)
        assert not api.file_exists(MODEL, "x.txt", token=token)
        with pytest.raises(RepositoryNotFoundError):
            api.hf_hub_download(MODEL, "x.txt", token=token)
        with pytest.raises(RepositoryNotFoundError):
            api.list_repo_files(MODEL, token=token)
    assert [request.status for request in hub.requests[-2:]] == [404, 404]
    assert api.repo_exists(MODEL, token="read")
    assert not api.repo_exists(MODEL, token=False)
    api.update_repo_settings(MODEL, private=False)
    assert api.repo_exists(MODEL, token=False)


def test_creating_twice_is_a_conflict_unless_it_is_allowed(hub: HubServer, api: HfApi):
    url = api.create_repo("model")
    assert (url.repo_id, url) == (MODEL, f"{hub.url}/{MODEL}")
    assert refused(api.create_repo, MODEL) == 409
    assert api.create_repo(MODEL, exist_ok=True) == url
    assert api.create_repo(MODEL, repo_type="dataset").repo_type == "dataset"
    assert hub.repos() == [MODEL, f"datasets/{MODEL}"]
    api.delete_repo(MODEL)
    assert hub.repos() == [f"datasets/{MODEL}"]
    assert not api.repo_exists(MODEL)


# ---------------------------------------------------------------------- uploads


def test_a_folder_arrives_whole_and_comes_back_whole(
    hub: HubServer, api: HfApi, folder: Path, tmp_path: Path, way: str
):
    api.create_repo(MODEL)
    done = api.upload_folder(repo_id=MODEL, folder_path=folder, commit_message="Step 1", commit_description="of many")
    repo = hub.repo(MODEL)
    assert repo.files() == {**FILES, "model.safetensors": WEIGHTS, "empty.bin": b""}
    assert repo.lfs_files() == {"model.safetensors"}
    newest = repo.commits()[0]
    assert (newest.oid, newest.title, newest.message, newest.author) == (done.oid, "Step 1", "of many", "alice")
    assert ("xet_upload" in hub.routes(), "lfs_upload" in hub.routes()) == (way == "xet", way == "lfs")

    copy = Path(api.snapshot_download(MODEL, cache_dir=tmp_path / "cache"))
    assert {p.relative_to(copy).as_posix(): p.read_bytes() for p in copy.rglob("*") if p.is_file()} == {
        **repo.files(),
        ".gitattributes": repo.at("main").files[".gitattributes"].data,
    }

    again = api.upload_folder(repo_id=MODEL, folder_path=folder)
    assert (again.oid, len(repo.commits())) == (done.oid, 2), "nothing has changed, so nothing is committed"


@pytest.mark.parametrize("data", [NOISE, TEXT, NUMBERS], ids=["noise", "text", "numbers"])
def test_each_packing_of_xet_is_understood(hub: HubServer, tmp_path: Path, data: bytes):
    with local_client(tmp_path):
        api = HfApi(endpoint=hub.url, token="write")
        api.create_repo(MODEL)
        api.upload_file(path_or_fileobj=data, path_in_repo="w.bin", repo_id=MODEL)
    assert hub.repo(MODEL).files() == {"w.bin": data}
    assert "xet_register" in hub.routes()


def test_lz4_with_overlapping_matches_and_long_counts():
    start = b"\x04\x22\x4d\x18\x60\x40\x82"
    # Two letters, repeated by a match that runs into what it writes, then a last letter; then an unpacked block.
    block = b"\x2fab\x02\x00" + bytes([255, 10]) + b"\x10z"
    unpacked = b"ab" * ((2 + 15 + 255 + 10 + 4) // 2) + b"z"
    frame = start + struct.pack("<I", len(block)) + block + struct.pack("<I", 3 | 1 << 31) + b"end" + bytes(4)
    assert unpack_lz4(frame) == unpacked + b"end"
    with pytest.raises(HubError):
        unpack_lz4(b"not packed")


def test_uploads_to_a_branch_with_deletions_leave_main_alone(hub: HubServer, api: HfApi, folder: Path, way: str):
    hub.put(MODEL, {"old.txt": b"old", "sub/old.txt": b"old", "keep.bin": b"\0kept"})
    before = hub.repo(MODEL).revisions()["main"]
    api.create_branch(MODEL, branch="checkpoints/step-1")
    patterns = ["*.txt", "*.safetensors"]
    api.upload_folder(repo_id=MODEL, folder_path=folder, revision="checkpoints/step-1", delete_patterns=patterns)
    repo = hub.repo(MODEL)
    assert repo.revisions()["main"] == before
    assert sorted(repo.files("checkpoints/step-1")) == sorted([*FILES, "model.safetensors", "empty.bin", "keep.bin"])
    assert len(repo.commits("checkpoints/step-1")) == 3
    assert hub.routes()[1] == "tree", "the client lists the branch to find what to delete"


def test_files_and_folders_are_deleted(hub: HubServer, api: HfApi):
    hub.put(MODEL, {"a/1": b"1", "a/b/2": b"2", "ab": b"3", "c": b"4"})
    api.delete_folder("a", MODEL)
    assert sorted(hub.repo(MODEL).files()) == ["ab", "c"]
    api.delete_file("c", MODEL)
    assert sorted(hub.repo(MODEL).files()) == ["ab"]
    for path in ("c", "a/"):
        with pytest.raises(RemoteEntryNotFoundError):
            api.delete_file(path, MODEL)


def test_a_commit_is_made_whole_or_not_at_all(hub: HubServer, api: HfApi):
    hub.put(MODEL, {"a.txt": b"a"})
    before = hub.repo(MODEL).revisions()
    operations = [CommitOperationAdd("b.txt", b"b"), CommitOperationDelete("missing.txt")]
    with pytest.raises(RemoteEntryNotFoundError):
        api.create_commit(MODEL, operations, commit_message="Both")
    assert hub.repo(MODEL).revisions() == before
    assert hub.repo(MODEL).files() == {"a.txt": b"a"}


def test_a_commit_on_an_outdated_parent_is_refused(hub: HubServer, api: HfApi):
    old = hub.put(MODEL, {"a.txt": b"a"}).oid
    new = hub.put(MODEL, {"a.txt": b"b"}).oid
    upload = {"path_or_fileobj": b"c", "path_in_repo": "a.txt", "repo_id": MODEL}
    assert refused(api.upload_file, **upload, parent_commit=old) == 412
    assert hub.repo(MODEL).files() == {"a.txt": b"b"}
    assert refused(api.upload_file, **upload, parent_commit=new) == 0


@pytest.mark.parametrize("revision", ["absent", "v1"])
def test_only_a_branch_takes_commits(hub: HubServer, api: HfApi, revision: str):
    hub.put(MODEL, FILES)
    api.create_tag(MODEL, tag="v1")
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=MODEL, revision=revision)


def test_what_was_not_uploaded_cannot_be_committed(hub: HubServer, api: HfApi):
    api.create_repo(MODEL)
    oid = "ab" * 32
    lines = b"""{"key": "header", "value": {"summary": "s"}}
    {"key": "lfsFile", "value": {"path": "w.bin", "algo": "sha256", "oid": "%b", "size": 3}}"""
    address, headers = f"{hub.url}/api/models/{MODEL}/commit/main", {"authorization": "Bearer write"}
    assert httpx.post(address, content=lines % oid.encode(), headers=headers).status_code == 400
    batch = {"operation": "upload", "objects": [{"oid": oid, "size": 3}]}
    answer = httpx.post(f"{hub.url}/{MODEL}.git/info/lfs/objects/batch", json=batch, headers=headers).json()
    upload, verify = (answer["objects"][0]["actions"][name]["href"] for name in ("upload", "verify"))
    assert httpx.put(upload, content=b"abc").status_code == 400, "the content has another sha256"
    assert httpx.post(verify, json={"oid": oid, "size": 3}).status_code == 404
    assert httpx.put(upload.replace("/lfs/", "/lfs/0"), content=b"abc").status_code == 403, "the address is the key"


def test_names_sizes_contents_and_gitattributes_decide_what_is_large(hub: HubServer, api: HfApi, waits: list[float]):
    hub.put(MODEL, {".gitattributes": b"*.dat filter=lfs -text\n"})
    for name, data in {"a.dat": b"text", "b.txt": b"with \0", "c.txt": b"text", "d.safetensors": b"text"}.items():
        api.upload_file(path_or_fileobj=data, path_in_repo=name, repo_id=MODEL)
    assert hub.repo(MODEL).lfs_files() == {"a.dat", "b.txt"}


def test_a_gitignore_that_is_uploaded_along_leaves_files_out(hub: HubServer, api: HfApi, folder: Path):
    (folder / ".gitignore").write_text("# notes\nsub/\n*.bin\n")
    api.create_repo(MODEL)
    api.upload_folder(repo_id=MODEL, folder_path=folder)
    assert sorted(hub.repo(MODEL).files()) == [".gitignore", "README.md", "config.json", "model.safetensors"]


def test_a_refused_card_stops_the_upload_before_anything_is_sent(hub: HubServer, api: HfApi, folder: Path):
    api.create_repo(MODEL)
    hub.inject(Fault("validate-yaml", status=400, body={"errors": [{"message": '"license" is not known'}]}))
    with pytest.raises(ValueError, match="license"):
        api.upload_folder(repo_id=MODEL, folder_path=folder)
    assert hub.routes() == ["create_repo", "validate_yaml"]
    (folder / "README.md").write_text("no metadata")
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.upload_folder(repo_id=MODEL, folder_path=folder)


# ---------------------------------------------------------------------- revisions and listings


def test_branches_and_tags(hub: HubServer, api: HfApi):
    first, second = hub.put(MODEL, {"a": b"1"}).oid, hub.put(MODEL, {"a": b"2"}).oid
    api.create_branch(MODEL, branch="old", revision=first)
    api.create_tag(MODEL, tag="v1", revision="old")
    refs = api.list_repo_refs(MODEL)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": second, "old": first}
    assert [(ref.name, ref.ref, ref.target_commit) for ref in refs.tags] == [("v1", "refs/tags/v1", first)]
    assert refused(api.create_branch, MODEL, branch="old") == 409
    assert refused(api.create_tag, MODEL, tag="v1") == 409
    assert refused(api.create_branch, MODEL, branch="old", exist_ok=True) == 0
    assert refused(api.create_tag, MODEL, tag="v1", exist_ok=True) == 0
    assert api.revision_exists(MODEL, "v1")
    api.delete_tag(MODEL, tag="v1")
    api.delete_branch(MODEL, branch="old")
    assert not api.revision_exists(MODEL, "v1")
    assert not api.revision_exists(MODEL, "old")
    assert api.model_info(MODEL, revision=first).sha == first, "a commit outlives its branch"
    assert refused(api.delete_branch, MODEL, branch="main") == 403


def test_information_on_files(hub: HubServer, api: HfApi):
    oid = hub.put(MODEL, {"a.txt": b"one\n", "sub/w.safetensors": b"weights"}).oid
    last = hub.put(MODEL, {"b.txt": b"two\n"}).oid
    info = api.model_info(MODEL, files_metadata=True)
    assert (info.id, info.sha, info.private, info.author) == (MODEL, last, False, "alice")
    files = {file.rfilename: file for file in info.siblings or []}
    assert sorted(files) == [".gitattributes", "a.txt", "b.txt", "sub/w.safetensors"]
    assert (files["a.txt"].size, files["a.txt"].blob_id) == (4, "5626abf0f72e58d7a153368ba57db4c673c0e171")
    assert files["a.txt"].lfs is None
    assert files["sub/w.safetensors"].lfs is not None
    assert files["sub/w.safetensors"].lfs.size == 7
    tree = {item.path: item for item in api.list_repo_tree(MODEL, expand=True)}
    assert sorted(tree) == [".gitattributes", "a.txt", "b.txt", "sub"]
    assert (tree["a.txt"].last_commit.oid, tree["b.txt"].last_commit.oid) == (oid, last)  # type: ignore[union-attr]
    assert [item.path for item in api.list_repo_tree(MODEL, "sub")] == ["sub/w.safetensors"]
    assert {item.path for item in api.get_paths_info(MODEL, ["a.txt", "sub", "none"])} == {"a.txt", "sub"}
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(MODEL, "none"))


def test_long_lists_come_in_pages(hub: HubServer, api: HfApi):
    oids = [hub.put(MODEL, {"a": b"%d" % number}, message=f"Number {number}").oid for number in range(60)]
    listed = api.list_repo_commits(MODEL)
    assert [commit.commit_id for commit in listed[:-1]] == oids[::-1]
    assert (listed[0].title, listed[-1].title) == ("Number 59", "initial commit")
    assert hub.routes() == ["commits", "commits"]
    hub.put(MODEL, {f"many/{number:04}": b"" for number in range(2100)})
    assert len(api.list_repo_files(MODEL)) == 2102
    assert hub.routes()[2:] == ["tree"] * 3
    api.super_squash_history(MODEL)
    assert len(api.list_repo_commits(MODEL)) == 1
    assert len(hub.repo(MODEL).files()) == 2101


# ---------------------------------------------------------------------- downloads


def test_downloads_by_revision_and_what_the_cache_saves(hub: HubServer, api: HfApi):
    first = hub.put(MODEL, {"w.bin": b"first", "a.txt": b"same"}).oid
    hub.put(MODEL, {"w.bin": b"second"}, revision="step-2")
    assert Path(api.hf_hub_download(MODEL, "w.bin")).read_bytes() == b"first"
    assert Path(api.hf_hub_download(MODEL, "w.bin", revision="step-2")).read_bytes() == b"second"
    api.hf_hub_download(MODEL, "a.txt")
    seen = len(hub.requests)
    copy = Path(api.hf_hub_download(MODEL, "a.txt", revision="step-2"))
    assert [request.method for request in hub.requests[seen:]] == ["HEAD"], "the content is known by its ETag"
    assert copy.parent.name == hub.repo(MODEL).revisions()["step-2"]
    api.hf_hub_download(MODEL, "w.bin", revision=first)
    assert len(hub.requests) == seen + 1, "a commit that is in the cache needs no request"
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download(MODEL, "none")
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(MODEL, "w.bin", revision="none")
    assert refused(api.model_info, "without-namespace") == 404


@pytest.mark.parametrize(
    ("asked", "status", "content"),
    [
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-2", 206, b"89"),
        ("bytes=8-99", 206, b"89"),
        ("bytes=10-", 416, None),
        ("", 200, b"0123456789"),
    ],
)
def test_ranges(hub: HubServer, asked: str, status: int, content: bytes | None):
    hub.put(MODEL, {"w.bin": b"0123456789"})
    answer = httpx.get(f"{hub.url}/{MODEL}/resolve/main/w.bin", headers={"range": asked} if asked else {})
    assert answer.status_code == status
    if content is not None:
        assert answer.content == content
    if status == 206:
        start = 10 - 2 if asked == "bytes=-2" else int(asked[6])
        assert answer.headers["content-range"] == f"bytes {start}-{start + len(answer.content) - 1}/10"


def test_a_download_that_is_cut_off_is_resumed_after_its_last_whole_chunk(
    hub: HubServer, api: HfApi, waits: list[float], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 40_000)  # 10 MB of its own accord
    hub.put(MODEL, {"w.bin": WEIGHTS})
    hub.inject(Fault("/resolve/", "GET", cut=100_000))
    assert Path(api.hf_hub_download(MODEL, "w.bin")).read_bytes() == WEIGHTS
    gets = [request for request in hub.requests if request.method == "GET"]
    assert [(get.status, get.headers.get("range")) for get in gets] == [(200, None), (206, "bytes=80000-")]
    assert waits == [1]


# ---------------------------------------------------------------------- faults


@pytest.mark.parametrize("status", [401, 403, 404, 409, 412, 429, 500, 503])
def test_a_status_is_answered_as_often_as_asked_for(hub: HubServer, api: HfApi, status: int, waits: list[float]):
    hub.put(MODEL, FILES)
    fault = hub.inject(Fault(r"^/api/models/.*/revision/", "GET", status=status, times=2, skip=1, message="No luck"))
    answers = [refused(api.model_info, MODEL, revision="main") for _ in range(4)]
    assert answers == [0, status, status, 0]
    assert fault.hits == 2
    assert [request.status for request in hub.requests] == [200, status, status, 200]
    assert waits == [], "the client does not repeat this request by itself"


def test_faults_are_for_requests_that_match_and_until_they_are_cleared(hub: HubServer, api: HfApi):
    hub.put(MODEL, FILES)
    hub.inject(Fault("/refs$", status=503, times=None))
    hub.inject(Fault("/api/models", "POST", status=503, times=None))
    assert refused(api.model_info, MODEL) == 0
    assert [refused(api.list_repo_refs, MODEL) for _ in range(3)] == [503] * 3
    assert refused(api.create_branch, MODEL, branch="b") == 503
    hub.clear_faults()
    assert refused(api.list_repo_refs, MODEL) == 0


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault("/preupload/", status=500), [1]),
        (Fault("/preupload/", status=503, times=3), [1, 2, 4]),
        (Fault("/preupload/", status=429, retry_after=7), [8.0]),
        (Fault("/preupload/", drop="close"), [1]),
        (Fault("/preupload/", drop="reset"), [1]),
        (Fault("objects/batch", status=500), [1]),
        (Fault("/verify$", status=500), [1]),
    ],
)
def test_what_the_client_repeats_by_itself(
    hub: HubServer, api: HfApi, waits: list[float], fault: Fault, expected: list[float]
):
    api.create_repo(MODEL)
    hub.inject(fault)
    api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="w.bin", repo_id=MODEL)
    assert waits == expected
    assert hub.repo(MODEL).files() == {"w.bin": WEIGHTS}


def test_the_client_gives_up_after_five_repetitions(hub: HubServer, api: HfApi, waits: list[float]):
    api.create_repo(MODEL)
    hub.inject(Fault("/preupload/", status=503, times=None))
    assert refused(api.upload_file, path_or_fileobj=b"x", path_in_repo="x", repo_id=MODEL) == 503
    assert waits == [1, 2, 4, 8, 8]
    assert hub.repo(MODEL).files() == {}


UPLOADED = r"^/lfs/.*[0-9a-f]$|/xorbs/"  # the request that carries a large file


@pytest.mark.parametrize("fault", [Fault(UPLOADED, drop="close"), Fault(UPLOADED, drop="reset", read=100_000)])
def test_an_upload_that_is_cut_off_is_repeated(hub: HubServer, api: HfApi, fault: Fault, way: str):
    api.create_repo(MODEL)
    fault = hub.inject(Fault(fault.path, drop=fault.drop, read=fault.read))
    api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="w.bin", repo_id=MODEL)
    assert hub.repo(MODEL).files() == {"w.bin": WEIGHTS}
    tries = [request for request in hub.requests if request.route in ("xet_upload", "lfs_upload")]
    assert [(request.status, request.route) for request in tries] == [(None, f"{way}_upload"), (200, f"{way}_upload")]
    assert fault.read <= tries[0].received <= fault.read + 65536 < tries[1].received


@pytest.mark.parametrize(("drop", "error"), [("close", httpx.RemoteProtocolError), ("reset", httpx.ReadError)])
def test_a_connection_is_closed_or_reset(hub: HubServer, drop: Literal["close", "reset"], error: type[Exception]):
    hub.inject(Fault(drop=drop))
    with pytest.raises(error):
        httpx.get(f"{hub.url}/api/whoami-v2")


def test_a_refused_large_file_is_never_committed(hub: HubServer, api: HfApi, way: str):
    api.create_repo(MODEL)
    hub.inject(Fault(UPLOADED, status=403, times=None))
    # hf_xet's exceptions are the language's own, not huggingface_hub's; with LFS the refusal is the cause of another.
    expected = ConnectionError if way == "xet" else RuntimeError
    with pytest.raises(expected):
        api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="w.bin", repo_id=MODEL)
    assert hub.repo(MODEL).files() == {}
    assert "commit" not in hub.routes()


def test_a_commit_whose_answer_is_lost_is_made_all_the_same(hub: HubServer, api: HfApi, waits: list[float]):
    api.create_repo(MODEL)
    hub.inject(Fault("/commit/", lose_answer=True))
    with pytest.raises(httpx.TransportError):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=MODEL)
    assert waits == [], "the client does not repeat a commit"
    assert hub.repo(MODEL).files() == {"x.txt": b"x"}
    assert hub.requests[-1].status is None


def test_slow_answers_and_slow_lines(hub: HubServer, api: HfApi):
    hub.put(MODEL, {"w.bin": b"x" * 10_000})
    address = f"{hub.url}/{MODEL}/resolve/main/w.bin"

    def seconds(fault: Fault) -> float:
        hub.inject(fault)
        start = time.monotonic()
        assert httpx.get(address, timeout=5).content == b"x" * 10_000
        return time.monotonic() - start

    assert seconds(Fault("w.bin", delay=0.3)) >= 0.3
    assert seconds(Fault("w.bin", trickle=25_000)) >= 0.3
    hub.inject(Fault("w.bin", delay=5))
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(address, timeout=0.1)


def test_an_upload_is_held_until_it_is_let_go(hub: HubServer, api: HfApi, way: str):
    api.create_repo(MODEL)
    go = threading.Event()
    fault = hub.inject(Fault(UPLOADED, read=1000, hold=go))
    upload = {"path_or_fileobj": WEIGHTS, "path_in_repo": "w.bin", "repo_id": MODEL}
    thread = threading.Thread(target=api.upload_file, kwargs=upload, daemon=True)
    thread.start()
    assert fault.arrived.wait(20)
    thread.join(0.2)
    assert thread.is_alive()
    assert refused(api.model_info, MODEL) == 0, "other requests are served meanwhile"
    assert hub.repo(MODEL).files() == {}
    go.set()
    thread.join(20)
    assert hub.repo(MODEL).files() == {"w.bin": WEIGHTS}


def test_a_process_is_killed_in_the_middle_of_its_upload(hub: HubServer, tmp_path: Path, folder: Path):
    hub.put(MODEL, FILES)
    code = "import sys; from huggingface_hub import HfApi; HfApi().upload_folder(repo_id=sys.argv[1], folder_path='.')"
    environment = {**os.environ, **hub.environment(tmp_path / "home", "write")}
    started = threading.Event()

    def kill(_: object) -> None:
        started.wait(20)
        process.kill()
        process.wait()

    fault = hub.inject(Fault(UPLOADED, read=10_000, callback=kill))
    process = subprocess.Popen([sys.executable, "-c", code, MODEL], cwd=folder, env=environment)
    started.set()
    assert process.wait(60) == -9
    assert fault.hits == 1
    # What the process had handed to the system still comes in, but nothing after it.
    assert hub.routes()[-1] == "xet_upload"
    assert hub.repo(MODEL).files() == FILES


def test_leaving_the_server_ends_what_is_held_and_frees_the_port():
    with HubServer(USERS) as hub:
        hub.put(MODEL, FILES)
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
        start = time.monotonic()
    thread.join(10)
    assert ended
    assert time.monotonic() - start < 5
    with pytest.raises(httpx.ConnectError):
        httpx.get(hub.url)


def test_what_is_not_served_is_said_and_what_breaks_is_raised():
    def ask() -> None:
        with HubServer(USERS) as hub:
            hub.put(MODEL, FILES)
            answer = httpx.post(f"{hub.url}/api/models/{MODEL}/discussions", json={})
            assert answer.status_code == 501
            assert hub.unserved == [f"POST /api/models/{MODEL}/discussions"]
            hub.repo(MODEL).history = None  # type: ignore[assignment]
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{hub.url}/api/models/{MODEL}")

    with pytest.raises(TypeError, match="NoneType"):
        ask()


# ---------------------------------------------------------------------- the libraries on top of the client

LOADS = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
import datasets

name, at = "alice/model", {"revision": "step-1"}
model = AutoModelForCausalLM.from_pretrained(name, **at)
adapter = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
adapter.save_pretrained("adapter")
config = json.loads(Path("adapter/adapter_config.json").read_text())
config.update(base_model_name_or_path=name, revision="step-1")
Path("adapter/adapter_config.json").write_text(json.dumps(config))
HfApi().create_repo("alice/adapter", private=True)
HfApi().upload_folder(repo_id="alice/adapter", folder_path="adapter")

def tokens(*place, **at):
    return AutoTokenizer.from_pretrained(*place, **at)("1 + 2")["input_ids"]

weights = AutoModelForCausalLM.from_pretrained(name, **at).state_dict()
local = AutoModelForCausalLM.from_pretrained(sys.argv[1]).state_dict()
found = {
    "config": AutoConfig.from_pretrained(name, **at).model_type,
    "tokens": tokens(name, **at) == tokens(sys.argv[1]),
    "weights": all(weights[key].equal(local[key]) for key in local),
    "onto": type(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(name, **at), "alice/adapter")).__name__,
    "alone": type(AutoPeftModelForCausalLM.from_pretrained("alice/adapter")).__name__,
    "lines": datasets.load_dataset("alice/lines", split="train")["a"][:],
    "table": datasets.load_dataset("alice/table", split="train", revision="main")["a"][:],
}
print(json.dumps(found))
"""


@pytest.mark.slow
def test_transformers_peft_and_datasets_load_what_lies_here(hub: HubServer, tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    tiny = ROOT / "configs" / "tiny-countdown"
    hub.put(MODEL, {path.name: path.read_bytes() for path in tiny.iterdir()}, "step-1", private=True)
    table = io.BytesIO()
    pq.write_table(pa.table({"a": [3, 4]}), table)
    hub.put("alice/lines", {"train.jsonl": b'{"a": 1}\n{"a": 2}\n'}, repo_type="dataset", private=True)
    hub.put("alice/table", {"data/train-00000-of-00001.parquet": table.getvalue()}, repo_type="dataset")
    environment = {**os.environ, **hub.environment(tmp_path / "home", "write"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOADS, str(tiny)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "config": "qwen2",
        "tokens": True,
        "weights": True,
        "onto": "PeftModel",
        "alone": "PeftModelForCausalLM",
        "lines": [1, 2],
        "table": [3, 4],
    }
    assert hub.repo("alice/adapter").lfs_files() == {"adapter_model.safetensors"}
