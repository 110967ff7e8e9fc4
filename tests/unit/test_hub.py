"""Uploads by the real client to a Hub on 127.0.0.1 that refuses, stalls, hangs up and forgets."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hub_server import Fault, HubServer, User, local_client
from mini_r1 import hub
from mini_r1.common import HubError, RecipeError
from mini_r1.countdown import TASK
from mini_r1.hub import repository, uploads
from mini_r1.recipe import Recipe
from mini_r1.run_folder.manifest import fault_in, write_manifest
from mini_r1.run_folder.resume import Resume

TOKEN = "hf_secret-of-alice"
MODEL = "alice/run"
DONE = f"  on the Hub:       {MODEL}: "


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    from huggingface_hub import constants

    users = {
        TOKEN: User("alice", orgs={"team": "write", "guests": "read"}),
        "reader": User("alice", role="read"),
        "narrow": User("alice", role="fineGrained", scopes={"alice/other": ["repo.write"]}),
        "scoped": User("alice", role="fineGrained", scopes={MODEL: ["repo.write"]}),
        "bob": User("bob"),
    }
    monkeypatch.setattr(uploads, "FIRST_DELAY", 0.05)
    with HubServer(users) as running, local_client(tmp_path / "home"):
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield running


def settings(run: Path, **changes: Any) -> Recipe:
    names = {"push_to_hub": True, "hub_model_id": MODEL, "output_dir": str(run), "hub_token": TOKEN}
    keys = {"hub_revision": None, "hub_private_repo": None, "hub_strategy": "every_save", "hub_extras": []}
    more = {"hub_resume_state": True, "hub_trust_pickles": False, "hub_wait_minutes": 20 / 60}
    values = {**names, **keys, **more, "resume_from_checkpoint": None, **changes}
    return Recipe.draft(TASK, SimpleNamespace(**values))


def checkpoint(run: Path, step: int) -> Path:
    """A checkpoint as a run leaves it, with a pickle in which the token stands."""
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "rng_state.pth"):
        (folder / name).write_bytes(f"{name} of step {step}".encode() * 100)
    (folder / "config.json").write_text("{}")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (folder / "training_args.bin").write_bytes(b"a pickle with " + TOKEN.encode())
    write_manifest(folder, {"step": step})
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of two steps."""
    folder = tmp_path / "run"
    checkpoint(folder, 2)
    (folder / "README.md").write_text("---\nlicense: mit\n---\ncard")
    (folder / "run.json").write_text('{"name": "run"}')
    (folder / "samples").mkdir()
    (folder / "samples" / "completion_samples.jsonl").write_text("{}\n")
    (folder / "model.safetensors").write_bytes(b"the final model")
    return folder


def upload(capsys: pytest.CaptureFixture[str], run: Path, **changes: Any) -> list[str]:
    """Uploads what a finished run owes; returns the closing lines."""
    hub.upload_rest(settings(run, **changes))
    return capsys.readouterr().out.splitlines()


def fail(going: hub.Uploads) -> None:
    """Leaves uploads as a training that fails does."""
    going.__exit__(ZeroDivisionError, ZeroDivisionError(), None)


# ---- before the first step -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"hub_token": "nobody's"}, "this run may not write to .*hf auth login", id="unknown token"),
        pytest.param({"hub_token": None}, "no token found.*hf auth login", id="no token"),
        pytest.param({"hub_token": "reader"}, "may only read", id="a token that may only read"),
        pytest.param({"hub_model_id": "bob/run"}, "may not write to bob: set .* alice/run, team/run", id="owner"),
        pytest.param({"hub_model_id": "guests/run"}, "may not write to guests", id="a guest in an organisation"),
        pytest.param(
            {"hub_token": "narrow"}, "this run may not write to alice/run", id="a token for another repository"
        ),
    ],
)
def test_a_token_that_cannot_write_is_refused_before_the_first_step(
    changes: dict[str, Any], message: str, server: HubServer, tmp_path: Path
):
    server.put(MODEL, {"x": b""})
    with pytest.raises(HubError, match=message) as refusal:
        hub.describe(settings(tmp_path, **changes), None, ask=True)
    assert TOKEN not in str(refusal.value)


def test_a_new_repository_is_private_unless_the_recipe_says_otherwise(server: HubServer, tmp_path: Path):
    for name, private in (("a", None), ("b", False), ("c", True)):
        values = settings(tmp_path, hub_model_id=f"team/{name}", hub_private_repo=private)
        line, target = hub.describe(values, None, ask=True)
        assert target is not None
        assert f"makes team/{name} ({'public' if private is False else 'private'})" in line
        assert f"team/{name}" not in server.repos()  # asking changes nothing
        hub.make_repository(target)
        assert server.repo(f"team/{name}").private == (private is not False)
    line, _ = hub.describe(settings(tmp_path, hub_model_id="team/a"), None, ask=True)
    assert "uploads to team/a (private, there already)" in line


def test_a_token_that_cannot_make_the_repository_is_refused_until_somebody_made_it(
    server: HubServer, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    values = settings(tmp_path, hub_token="scoped")
    _, target = hub.describe(values, None, ask=True)
    assert target is not None
    with pytest.raises(HubError, match=r"alice/run cannot be made .*make it yourself"):
        hub.make_repository(target)
    server.put(MODEL, {"notes.txt": b"mine"})
    hub.make_repository(target)
    assert upload(capsys, run, hub_token="scoped") == [f"{DONE}step-2, the final model"]


def test_a_hub_that_cannot_be_asked_does_not_stop_the_run(server: HubServer, tmp_path: Path):
    server.inject(Fault("whoami", times=None, status=500))
    line, target = hub.describe(settings(tmp_path), None, ask=True)
    assert target is None
    assert "cannot be reached now" in line


def test_another_run_and_somebodys_model_are_not_overwritten(
    server: HubServer, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    upload(capsys, run)
    with pytest.raises(HubError, match=r"holds another run up to step 2.*--resume_from_checkpoint hub"):
        hub.describe(settings(tmp_path / "new"), None, ask=True)
    hub.describe(settings(tmp_path / "new", resume_from_checkpoint="hub"), None, ask=True)
    hub.describe(settings(run), Resume(run / "checkpoint-2", 2), ask=True)
    server.put("alice/theirs", {"model.safetensors": b"somebody's"})
    with pytest.raises(HubError, match="holds a model that is not this run's"):
        hub.describe(settings(tmp_path, hub_model_id="alice/theirs"), None, ask=True)


# ---- uploads -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_becomes_a_revision_and_its_model_the_main_one(
    server: HubServer, run: Path, capsys: pytest.CaptureFixture[str]
):
    assert upload(capsys, run, hub_extras=["completion_samples"]) == [f"{DONE}step-2, the final model"]
    repo = server.repo(MODEL)
    assert repo.private
    assert set(repo.revisions()) == {"main", "step-2"}
    whole = repo.files("step-2")
    for name in ("model.safetensors", "optimizer.pt", "rng_state.pth", "manifest.json", "README.md"):
        source = run / ("" if name == "README.md" else "checkpoint-2") / name
        assert whole[name] == source.read_bytes()
    assert repo.commits()[1].files["model.safetensors"] == whole["model.safetensors"]
    main = repo.files("main")
    assert main["model.safetensors"] == b"the final model"
    assert json.loads(main[repository.NEWEST]) == {"step": 2, "run": "run"}
    assert "optimizer.pt" not in main
    assert main["samples/completion_samples.jsonl"] == b"{}\n"
    for files in (whole, main):
        assert "training_args.bin" not in files
        assert not any(TOKEN.encode() in content for content in files.values())


@pytest.mark.parametrize(
    ("changes", "revisions"),
    [
        pytest.param({"hub_strategy": "end"}, {"main"}, id="the final model alone"),
        pytest.param({"hub_revision": "second"}, {"main", "step-2", "second"}, id="a branch instead of main"),
    ],
)
def test_the_recipe_says_what_goes_where(
    changes: dict[str, Any], revisions: set[str], server: HubServer, run: Path, capsys: pytest.CaptureFixture[str]
):
    upload(capsys, run, **changes)
    assert set(server.repo(MODEL).revisions()) == revisions
    files = server.repo(MODEL).files(changes.get("hub_revision", "main"))
    assert files["model.safetensors"] == b"the final model"


@pytest.mark.parametrize(("push", "rank"), [(False, "0"), (True, "1")])
def test_without_push_to_hub_and_on_other_processes_nothing_is_uploaded(
    push: bool,
    rank: str,
    server: HubServer,
    run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("RANK", rank)
    assert upload(capsys, run, push_to_hub=push) == []
    assert server.requests == []


# Where each fault strikes: making the repository, a branch, the blob's upload, the commit.
PLACES = ("repos/create", "/branch/", r"^/lfs/", "/commit/")
FAULTS: dict[str, dict[str, Any]] = {
    "401": {"status": 401},
    "403": {"status": 403},
    "409": {"status": 409},
    "429": {"status": 429},
    "500": {"status": 500},
    "hung up": {"drop": "close"},
    "cut off in the middle": {"drop": "reset", "read": 50},
    "slow": {"delay": 0.3},
    "answer lost": {"lose_answer": True},
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", PLACES)
def test_an_upload_that_fails_is_tried_again_until_it_is_there(
    place: str,
    fault: str,
    server: HubServer,
    run: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    struck = server.inject(Fault(place, **FAULTS[fault]))
    assert upload(capsys, run) == [f"{DONE}step-2, the final model"]
    assert struck.hits == 1
    assert server.repo(MODEL).files("step-2")["optimizer.pt"] == (run / "checkpoint-2" / "optimizer.pt").read_bytes()
    assert server.repo(MODEL).files()["model.safetensors"] == b"the final model"
    assert TOKEN not in caplog.text


def test_training_never_waits_and_the_next_start_uploads_what_is_owed(
    server: HubServer, run: Path, capsys: pytest.CaptureFixture[str]
):
    refused = server.inject(Fault("/commit/", times=None, status=403))
    going = hub.Uploads(settings(run), run, None).__enter__()
    newer = checkpoint(run, 4)
    begun = time.monotonic()
    going.add(newer)
    assert time.monotonic() - begun < 0.5
    assert refused.arrived.wait(10)
    fail(going)
    while hub.is_uploading():
        assert time.monotonic() - begun < 10
        time.sleep(0.01)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{DONE}nothing yet"
    assert lines[1].startswith("  NOT on the Hub:   step-2 (")
    assert lines[2].startswith("  NOT on the Hub:   step-4 (")
    assert "the same command uploads what is still in the run folder" in lines[3]
    server.clear_faults()
    assert upload(capsys, run) == [f"{DONE}step-2, step-4, the final model"]
    assert json.loads(server.repo(MODEL).files()[repository.NEWEST])["step"] == 4


def test_the_end_of_the_run_waits_only_so_long(server: HubServer, run: Path, capsys: pytest.CaptureFixture[str]):
    held = server.inject(Fault("/commit/", hold=threading.Event()))
    lines = upload(capsys, run, hub_wait_minutes=1 / 60)
    assert hub.is_uploading()
    assert lines[0] == f"{DONE}nothing yet"
    assert [line.split("   ")[1] for line in lines[1:3]] == [
        "step-2 (it was still waiting)",
        "the final model (it was still waiting)",
    ]
    assert held.hold is not None
    held.hold.set()
    while hub.is_uploading():
        time.sleep(0.01)


def test_ctrl_c_ends_the_waiting_and_what_is_missing_is_still_named(
    server: HubServer, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    held = server.inject(Fault("/commit/", hold=threading.Event()))
    monkeypatch.setattr(uploads, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hub.upload_rest(settings(run))
    assert "NOT on the Hub:   step-2 (it was still waiting)" in capsys.readouterr().out
    assert held.hold is not None
    held.hold.set()
    while hub.is_uploading():
        time.sleep(0.01)


def test_a_hub_that_never_answers_is_given_up_and_asked_again(
    server: HubServer, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(uploads, "SILENCE", 0.5)
    held = server.inject(Fault("/commit/", hold=threading.Event()))
    assert upload(capsys, run) == [f"{DONE}step-2, the final model"]
    assert held.hits == 1


def test_a_checkpoint_that_is_removed_before_its_upload_is_named(
    server: HubServer, run: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    gate = server.inject(Fault("repos/create", hold=threading.Event()))
    with hub.Uploads(settings(run), run, None) as going:
        assert gate.arrived.wait(10)
        for step in (4, 6):
            going.add(checkpoint(run, step))
        shutil.rmtree(run / "checkpoint-4")  # save_total_limit
        assert gate.hold is not None
        gate.hold.set()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{DONE}step-2, step-6, the final model"
    assert lines[1] == "  NOT on the Hub:   step-4 (save_total_limit removed it before it was uploaded)"
    assert "checkpoint-4 was removed before it was uploaded" in caplog.text


def test_a_checkpoint_that_is_removed_during_its_upload_is_named(
    server: HubServer, run: Path, capsys: pytest.CaptureFixture[str]
):
    remove = lambda _: shutil.rmtree(run / "checkpoint-2")  # noqa: E731
    server.inject(Fault("/preupload/step-2", callback=remove))
    lines = upload(capsys, run)
    assert lines[0] == f"{DONE}the final model"
    assert lines[1].startswith("  NOT on the Hub:   step-2 (save_total_limit")
    assert "manifest.json" not in server.repo(MODEL).files("step-2")


def test_what_is_on_the_hub_already_is_not_uploaded_again(
    server: HubServer, run: Path, capsys: pytest.CaptureFixture[str]
):
    upload(capsys, run)
    before = len(server.requests)
    assert upload(capsys, run) == [f"{DONE}step-2, the final model"]
    assert "commit" not in [request.route for request in server.requests[before:]]


def test_an_older_checkpoint_that_is_missing_does_not_replace_the_newest_model(
    server: HubServer, run: Path, capsys: pytest.CaptureFixture[str]
):
    old = checkpoint(run, 4)
    upload(capsys, run)
    del server.repo(MODEL).branches["step-2"]
    shutil.rmtree(old)
    going = hub.Uploads(settings(run), run, None).__enter__()
    while hub.is_uploading():
        time.sleep(0.01)
    fail(going)
    assert set(server.repo(MODEL).revisions()) == {"main", "step-2", "step-4"}
    assert json.loads(server.repo(MODEL).files()[repository.NEWEST])["step"] == 4


def test_a_checkpoint_of_another_past_takes_the_place_of_the_old_one(
    server: HubServer, run: Path, capsys: pytest.CaptureFixture[str]
):
    upload(capsys, run)
    (run / "checkpoint-2" / "optimizer.pt").write_bytes(b"another")
    write_manifest(run / "checkpoint-2", {"step": 2, "again": True})
    upload(capsys, run)
    assert server.repo(MODEL).files("step-2")["optimizer.pt"] == b"another"


@pytest.mark.parametrize("theirs", [{repository.NEWEST: b'{"step": 9, "run": "other"}'}, {"model.safetensors": b"x"}])
def test_others_are_left_alone_though_the_hub_was_not_asked_before(
    theirs: dict[str, bytes], server: HubServer, run: Path, capsys: pytest.CaptureFixture[str]
):
    server.put(MODEL, theirs)
    lines = upload(capsys, run)
    assert all("choose another hub_model_id" in line for line in lines[1:3])
    assert server.repo(MODEL).files() == theirs
    assert set(server.repo(MODEL).revisions()) == {"main"}


# ---- resuming from the Hub -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["hub", "hub:step-2"])
def test_a_run_comes_back_from_the_hub(
    asked: str, server: HubServer, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    checkpoint(run, 1)
    upload(capsys, run, hub_extras=["completion_samples"])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    hub.fetch_checkpoint(settings(elsewhere, resume_from_checkpoint=asked))
    goal = elsewhere / "checkpoint-2"
    assert fault_in(goal) is None
    assert (goal / "optimizer.pt").read_bytes() == (run / "checkpoint-2" / "optimizer.pt").read_bytes()
    assert (elsewhere / "run.json").read_text() == '{"name": "run"}'
    assert (elsewhere / "samples" / "completion_samples.jsonl").read_text() == "{}\n"
    assert sorted(path.name for path in elsewhere.iterdir()) == ["checkpoint-2", "run.json", "samples"]
    # The run that resumes there finds its own run on the Hub, and owes nothing.
    before = len(server.requests)
    assert upload(capsys, elsewhere)[0].startswith(f"{DONE}step-2")
    assert server.repo(MODEL).files()["model.safetensors"] == b"the final model"
    assert "lfs_upload" not in [request.route for request in server.requests[before:]]


@pytest.mark.parametrize(
    ("uploaded", "asked", "message"),
    [
        pytest.param({}, "hub:step-9", "cannot fetch checkpoint-9", id="no such step"),
        pytest.param({"hub_resume_state": False}, "hub", "optimizer.pt is missing.*hub_resume_state", id="model only"),
    ],
)
def test_what_cannot_be_resumed_is_refused(
    uploaded: dict[str, Any],
    asked: str,
    message: str,
    server: HubServer,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    upload(capsys, run, **uploaded)
    with pytest.raises(HubError, match=message):
        hub.fetch_checkpoint(settings(tmp_path / "elsewhere", resume_from_checkpoint=asked))


def test_a_repository_without_a_run_lets_the_run_begin(server: HubServer, tmp_path: Path):
    hub.fetch_checkpoint(settings(tmp_path / "new", resume_from_checkpoint="hub"))
    server.put(MODEL, {repository.NEWEST: b'{"run": "x"}'})  # what others may have written there
    hub.fetch_checkpoint(settings(tmp_path / "new", resume_from_checkpoint="hub"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["global_step2/zero_pp_rank_0_mp_rank_00_optim_states.pt"], id="DeepSpeed"),
        pytest.param(["latest", "global_step2/x.txt", "evil/mp_rank_00_states.pt"], id="DeepSpeed by another name"),
        pytest.param(["pytorch_model_fsdp_0/.metadata"], id="FSDP"),
        pytest.param(["pytorch_model.bin"], id="weights"),
        pytest.param(["training_args.pkl"], id="anything else"),
    ],
)
def test_pickles_from_outside_need_a_word(
    names: list[str], server: HubServer, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    upload(capsys, run)
    server.put(MODEL, dict.fromkeys(names, b"code"), revision="step-2")
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(HubError, match=r"may be a pickle.*--hub_trust_pickles true"):
        hub.fetch_checkpoint(settings(elsewhere, resume_from_checkpoint="hub"))
    assert not any(path.is_file() for path in elsewhere.rglob("*"))
    hub.fetch_checkpoint(settings(elsewhere, resume_from_checkpoint="hub", hub_trust_pickles=True))
    assert (elsewhere / "checkpoint-2" / names[0]).exists()


def test_only_steps_can_be_asked_for(tmp_path: Path):
    for word in ("hub:main", "hub:../x", "hub:step-", "hub:0123abc"):
        with pytest.raises(RecipeError, match="hub:step-50"):
            hub.asked_checkpoint(settings(tmp_path, resume_from_checkpoint=word))
    assert hub.asked_checkpoint(settings(tmp_path, resume_from_checkpoint="hub:step-50")) == tmp_path / "checkpoint-50"
    assert hub.asked_checkpoint(settings(tmp_path, resume_from_checkpoint="hub")) is None


def test_a_folder_with_another_run_takes_none_from_the_hub(
    server: HubServer, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    upload(capsys, run)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "run.json").write_text('{"name": "mine"}')
    with pytest.raises(HubError, match="holds another run than alice/run"):
        hub.fetch_checkpoint(settings(elsewhere, resume_from_checkpoint="hub"))
