"""Uploads by the real client to a Hub on 127.0.0.1 that refuses, stalls, hangs up and forgets."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import chaos
import forked_run
from hub_server import Fault, HubServer, User, local_client
from mini_r1 import hub
from mini_r1.common import RecipeError
from mini_r1.run_folder import resume as resumption

TOKEN = "hf_secret-of-alice"
MODEL = "alice/run"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    from huggingface_hub import constants

    users = {
        TOKEN: User("alice", orgs={"team": "write", "guests": "read"}),
        "reader": User("alice", role="read"),
        "narrow": User("alice", role="fineGrained", scopes={"alice/other": ["repo.write"]}),
        "bob": User("bob"),
    }
    monkeypatch.setattr(hub, "FIRST_DELAY", 0.05)
    with HubServer(users) as running, local_client(tmp_path / "home", xet=False):
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield running


def settings(run: Path, **changes: Any) -> SimpleNamespace:
    values = {
        "push_to_hub": True, "hub_model_id": MODEL, "output_dir": str(run), "hub_token": TOKEN, "hub_revision": None,
        "hub_private_repo": None, "hub_strategy": "every_save", "hub_extras": [], "hub_resume_state": True,
        "hub_trust_pickles": False, "resume_from_checkpoint": None,
    }  # fmt: skip
    return SimpleNamespace(**{**values, **changes})


def checkpoint(run: Path, step: int) -> Path:
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "rng_state.pth"):
        (folder / name).write_bytes(f"{name} of step {step}".encode() * 100)
    (folder / "config.json").write_text("{}")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (folder / "training_args.bin").write_bytes(b"a pickle with " + TOKEN.encode())
    resumption.write_manifest(folder, {"step": step})
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    checkpoint(folder, 2)
    (folder / "README.md").write_text("---\nlicense: mit\n---\ncard")
    (folder / "run.json").write_text('{"name": "run"}')
    (folder / "samples").mkdir()
    (folder / "samples" / "completion_samples.jsonl").write_text("{}\n")
    (folder / "model.safetensors").write_bytes(b"the final model")
    return folder


def uploads(run: Path, *, wait: float = 20, final: bool = False, **changes: Any) -> list[str]:
    """Uploads what a run folder holds and returns the closing lines."""
    uploader = hub.Uploader(settings(run, **changes), run, MODEL)
    uploader.start()
    return uploader.finish(wait, final=final)


# ---- before the first step -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"hub_token": "nobody's"}, "the Hub refuses this token .*hf auth login", id="unknown token"),
        pytest.param({"hub_token": None}, "there is no token.*hf auth login", id="no token"),
        pytest.param({"hub_token": "reader"}, "may only read", id="a token that may only read"),
        pytest.param({"hub_model_id": "bob/run"}, "may not write to bob: set .* alice/run, team/run", id="owner"),
        pytest.param({"hub_model_id": "guests/run"}, "may not write to guests", id="a guest in an organisation"),
        pytest.param({"hub_token": "narrow"}, "refuses this token for alice/run", id="a token for another repository"),
    ],
)  # fmt: skip
def test_a_token_that_cannot_write_is_refused_before_the_first_step(
    changes: dict[str, Any], message: str, server: HubServer, tmp_path: Path
):
    server.put(MODEL, {"x": b""})
    with pytest.raises(RecipeError, match=message) as refusal:
        hub.describe(settings(tmp_path, **changes), None, ask=True)
    assert TOKEN not in str(refusal.value)


def test_a_new_repository_is_private_unless_the_recipe_says_otherwise(server: HubServer, tmp_path: Path):
    for name, private in (("a", None), ("b", False), ("c", True)):
        values = settings(tmp_path, hub_model_id=f"team/{name}", hub_private_repo=private)
        line, target = hub.describe(values, None, ask=True)
        assert target is not None
        assert f"makes team/{name} ({'public' if private is False else 'private'})" in line
        assert f"team/{name}" not in server.repos()  # asking changes nothing
        hub.make_repository(values, target)
        assert server.repo(f"team/{name}").private == (private is not False)
    line, _ = hub.describe(settings(tmp_path, hub_model_id="team/a"), None, ask=True)
    assert "uploads to team/a (private, there already) as alice" in line


def test_a_hub_that_cannot_be_asked_does_not_stop_the_run(server: HubServer, tmp_path: Path):
    server.inject(Fault("whoami", times=None, status=500))
    line, target = hub.describe(settings(tmp_path), None, ask=True)
    assert target is None
    assert "cannot be reached now" in line


def test_another_run_on_the_hub_is_not_overwritten(server: HubServer, run: Path, tmp_path: Path):
    uploads(run)
    with pytest.raises(RecipeError, match=r"holds another run up to step 2.*--resume_from_checkpoint hub"):
        hub.describe(settings(tmp_path / "new"), None, ask=True)
    hub.describe(settings(tmp_path / "new", resume_from_checkpoint="hub"), None, ask=True)
    hub.describe(settings(run), resumption.Resume(run / "checkpoint-2", 2), ask=True)


# ---- uploads -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_becomes_a_revision_and_its_model_the_main_one(server: HubServer, run: Path):
    lines = uploads(run, final=True, hub_extras=["completion_samples"])
    assert lines == [f"  on the Hub:       {MODEL}: step-2, the final model"]
    repo = server.repo(MODEL)
    assert repo.private
    assert set(repo.revisions()) == {"main", "step-2"}
    whole = repo.files("step-2")
    for name in ("model.safetensors", "optimizer.pt", "rng_state.pth", "manifest.json", "README.md"):
        source = run / ("" if name == "README.md" else "checkpoint-2") / name
        assert whole[name] == source.read_bytes()
    main = repo.files("main")
    assert main["model.safetensors"] == b"the final model"
    assert json.loads(main[hub.NEWEST]) == {"step": 2, "run": "run"}
    assert "optimizer.pt" not in main
    assert main["samples/completion_samples.jsonl"] == b"{}\n"
    for files in (whole, main):
        assert "training_args.bin" not in files
        assert not any(TOKEN.encode() in content for content in files.values())
    assert not (run / hub.QUEUE).exists()


# Where each fault strikes: asking who we are, making the repository, a branch, the blob's upload, the commit.
PLACES = ("whoami|repos/create", "/branch/", r"^/lfs/", "/commit/")
FAULTS = {
    "401": {"status": 401}, "403": {"status": 403}, "409": {"status": 409}, "429": {"status": 429, "retry_after": 0},
    "500": {"status": 500}, "hung up": {"drop": "close"}, "cut off in the middle": {"drop": "reset", "read": 50},
    "slow": {"delay": 0.3}, "answer lost": {"lose_answer": True},
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", PLACES)
def test_an_upload_that_fails_is_tried_again_until_it_is_there(
    place: str, fault: str, server: HubServer, run: Path, caplog: pytest.LogCaptureFixture
):
    struck = server.inject(Fault(place, **FAULTS[fault]))
    lines = uploads(run)
    assert struck.hits == 1
    assert lines == [f"  on the Hub:       {MODEL}: step-2"]
    assert server.repo(MODEL).files("step-2")["optimizer.pt"] == (run / "checkpoint-2" / "optimizer.pt").read_bytes()
    assert json.loads(server.repo(MODEL).files()[hub.NEWEST])["step"] == 2
    assert TOKEN not in caplog.text


def test_training_never_waits_and_what_was_not_uploaded_is_named_and_caught_up_later(server: HubServer, run: Path):
    server.inject(Fault("/commit/", times=None, status=403))
    uploader = hub.Uploader(settings(run), run, MODEL)
    uploader.start()
    shown = checkpoint(run, 4)
    begun = time.monotonic()
    uploader.add(shown)
    assert time.monotonic() - begun < 0.5
    lines = uploader.finish(1.0, final=False)
    assert "nothing yet" in lines[0]
    assert "step-2" in lines[1]
    assert "403" in lines[1]
    assert "step-4" in lines[2]
    assert "the same command uploads what is missing" in lines[-1]
    # save_total_limit removes the originals; the next start of the run has the links.
    shutil.rmtree(run / "checkpoint-2")
    server.clear_faults()
    assert uploads(run) == [f"  on the Hub:       {MODEL}: step-2, step-4"]
    assert server.repo(MODEL).files("step-2")["optimizer.pt"].startswith(b"optimizer.pt of step 2")


def test_a_hub_that_never_answers_holds_up_nothing(server: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "SILENCE", 0.5)
    held = server.inject(Fault("/commit/", hold=threading.Event()))
    assert uploads(run) == [f"  on the Hub:       {MODEL}: step-2"]
    assert held.hits == 1


def test_what_is_on_the_hub_already_is_not_uploaded_again(server: HubServer, run: Path):
    uploads(run)
    before = len(server.requests)
    assert uploads(run) == [f"  on the Hub:       {MODEL}: step-2"]
    assert "commit" not in [request.route for request in server.requests[before:]]


def test_a_checkpoint_of_another_past_takes_the_place_of_the_old_one(server: HubServer, run: Path):
    uploads(run)
    (run / "checkpoint-2" / "optimizer.pt").write_bytes(b"another")
    resumption.write_manifest(run / "checkpoint-2", {"step": 2, "again": True})
    uploads(run)
    assert server.repo(MODEL).files("step-2")["optimizer.pt"] == b"another"


def test_a_queue_that_grows_too_long_gives_up_the_oldest_and_says_so(
    server: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(hub, "MAX_WAITING", 2)
    gate = server.inject(Fault("repos/create", hold=threading.Event()))
    uploader = hub.Uploader(settings(run), run, MODEL)
    uploader.start()
    assert gate.arrived.wait(10)
    for step in (4, 6, 8, 10):
        uploader.add(checkpoint(run, step))
    assert gate.hold is not None
    gate.hold.set()
    lines = uploader.finish(20, final=False)
    assert lines[0].endswith("step-2, step-8, step-10")
    assert [line.split("   ")[-1].split(" ")[0] for line in lines[1:3]] == ["step-4", "step-6"]


# ---- going on from the Hub -----------------------------------------------------------------------------------------


def test_a_run_comes_back_from_the_hub(server: HubServer, run: Path, tmp_path: Path):
    uploads(run, hub_extras=["completion_samples"])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    goal = hub.fetch_checkpoint(settings(elsewhere, resume_from_checkpoint="hub"))
    assert goal == elsewhere / "checkpoint-2"
    assert resumption.fault_in(goal) is None
    assert (goal / "optimizer.pt").read_bytes() == (run / "checkpoint-2" / "optimizer.pt").read_bytes()
    assert (elsewhere / "run.json").read_text() == '{"name": "run"}'
    assert (elsewhere / "samples" / "completion_samples.jsonl").read_text() == "{}\n"
    assert sorted(path.name for path in elsewhere.iterdir()) == ["checkpoint-2", "run.json", "samples"]


@pytest.mark.parametrize(
    ("uploaded", "asked", "message"),
    [
        pytest.param({}, "hub:step-9", "cannot fetch step-9", id="no such step"),
        pytest.param({"hub_resume_state": False}, "hub", "optimizer.pt is missing.*hub_resume_state", id="model only"),
    ],
)
def test_what_cannot_be_gone_on_from_is_refused(
    uploaded: dict[str, Any], asked: str, message: str, server: HubServer, run: Path, tmp_path: Path
):
    uploads(run, **uploaded)
    with pytest.raises(RecipeError, match=message):
        hub.fetch_checkpoint(settings(tmp_path / "elsewhere", resume_from_checkpoint=asked))


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["global_step2/zero_pp_rank_0_mp_rank_00_optim_states.pt"], id="DeepSpeed"),
        pytest.param(
            ["latest", "global_step2/x.txt", "evil/mp_rank_00_model_states.pt"], id="DeepSpeed by another name"
        ),
        pytest.param(["pytorch_model_fsdp_0/.metadata"], id="FSDP"),
        pytest.param(["pytorch_model.bin"], id="weights"),
        pytest.param(["training_args.pkl"], id="anything else"),
    ],
)
def test_pickles_from_outside_need_a_word(names: list[str], server: HubServer, run: Path, tmp_path: Path):
    uploads(run)
    server.put(MODEL, dict.fromkeys(names, b"code"), revision="step-2")
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(RecipeError, match=r"may be a pickle.*--hub_trust_pickles true"):
        hub.fetch_checkpoint(settings(elsewhere, resume_from_checkpoint="hub"))
    assert not elsewhere.exists() or not any(elsewhere.rglob("*.*t*"))
    trusting = settings(elsewhere, resume_from_checkpoint="hub", hub_trust_pickles=True)
    assert hub.fetch_checkpoint(trusting) == elsewhere / "checkpoint-2"


def test_only_steps_can_be_asked_for(tmp_path: Path):
    for word in ("hub:main", "hub:../x", "hub:step-", "hub:0123abc"):
        with pytest.raises(RecipeError, match="hub:step-50"):
            hub.asked_checkpoint(settings(tmp_path, resume_from_checkpoint=word))
    assert hub.asked_checkpoint(settings(tmp_path, resume_from_checkpoint="hub:step-50")) == tmp_path / "checkpoint-50"
    assert hub.asked_checkpoint(settings(tmp_path, resume_from_checkpoint="hub")) is None


def test_a_folder_with_another_run_takes_none_from_the_hub(server: HubServer, run: Path, tmp_path: Path):
    uploads(run)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "run.json").write_text('{"name": "mine"}')
    with pytest.raises(RecipeError, match="holds another run than alice/run"):
        hub.fetch_checkpoint(settings(elsewhere, resume_from_checkpoint="hub"))


def test_a_model_that_no_run_wrote_is_not_overwritten(server: HubServer, tmp_path: Path):
    server.put(MODEL, {"model.safetensors": b"somebody's"})
    with pytest.raises(RecipeError, match="holds a model that is not this run's"):
        hub.describe(settings(tmp_path), None, ask=True)


def test_another_run_is_left_alone_though_the_hub_was_not_asked_before(server: HubServer, run: Path, tmp_path: Path):
    uploads(run)
    other = tmp_path / "other"
    checkpoint(other, 4)
    (other / "run.json").write_text('{"name": "other"}')
    uploader = hub.Uploader(settings(other), other, None)
    uploader.start()
    lines = uploader.finish(10, final=False)
    assert "holds another run, and is left alone" in lines[1]
    assert set(server.repo(MODEL).revisions()) == {"main", "step-2"}


# ---- real runs -----------------------------------------------------------------------------------------------------

QUICK = {"max_steps": 8, "dataset_rows": 60, "push_to_hub": True, "hub_model_id": MODEL}


@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_an_upload_loses_nothing_and_goes_on_elsewhere(server: HubServer, tmp_path: Path):
    environment = server.environment(tmp_path / "home", TOKEN, xet=False)
    reference = chaos.undisturbed(tmp_path / "reference", max_steps=8, dataset_rows=60)

    # SIGKILL while a file of step 4 is on its way.
    run, pid = tmp_path / "run", 0

    def strike(request: Any) -> None:
        if MODEL in server.repos() and hub.NEWEST in server.repo(MODEL).files():
            os.kill(pid, signal.SIGKILL)

    server.inject(Fault("^/lfs/", "PUT", times=None, read=1000, callback=strike))
    process = chaos.start(run, ("quick_retries",), environment, **QUICK)
    pid = process.pid or 0
    assert forked_run.finish(process) == -9, Path(f"{run}.log").read_text()
    server.clear_faults()
    assert set(server.repo(MODEL).revisions()) - {"step-4"} == {"main", "step-2"}
    assert "optimizer.pt" not in server.repo(MODEL).files()

    # Elsewhere, from the Hub alone, with samples and curves.
    extras = {**QUICK, "hub_extras": "completion_samples"}
    elsewhere = tmp_path / "elsewhere"
    code = forked_run.finish(
        chaos.start(elsewhere, ("quick_retries",), environment, **{**extras, "resume_from_checkpoint": "hub"})
    )
    output = Path(f"{elsewhere}.log").read_text()
    assert code == 0, output
    assert "on the Hub:       alice/run: step-2, step-4, step-6, step-8, the final model" in output
    assert (elsewhere / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()
    assert [e for e in chaos.history(elsewhere) if e["step"] > 2] == [
        e for e in chaos.history(reference) if e["step"] > 2
    ]
    repo = server.repo(MODEL)
    assert set(repo.revisions()) == {"main", "step-2", "step-4", "step-6", "step-8"}
    assert repo.files()["model.safetensors"] == (reference / "model.safetensors").read_bytes()

    # A finished run that owes something pays it when the same command is given again.
    before = repo.commits()[0]
    assert forked_run.finish(chaos.start(elsewhere, None, environment, **extras)) == 2
    output = Path(f"{elsewhere}.log").read_text()
    assert "on the Hub:       alice/run: step-4, step-6, step-8, the final model" in output
    assert "is finished" in output
    assert repo.commits()[0].files == before.files

    # The card tells what the run was, and no file tells the token.
    card = repo.files()["README.md"].decode()
    for part in (
        "## Held-out puzzles",
        "| 8 | ",
        "max_steps: 8",
        "transformers",
        "AutoTokenizer",
        "![Curves",
        "## Licence",
    ):
        assert part in card, card
    assert repo.files()["curve.png"].startswith(b"\x89PNG")
    for revision in repo.revisions():
        assert not any(TOKEN.encode() in content for content in repo.files(revision).values())
    for path in tmp_path.rglob("*"):
        if path.is_file() and tmp_path / "home" not in path.parents:
            assert TOKEN.encode() not in path.read_bytes(), path
