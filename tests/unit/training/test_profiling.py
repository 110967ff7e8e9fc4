"""A profiled run: what it leaves adds up, and its numbers are those of a run without."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path

import pytest
from test_trainer import make_trainer

import chaos
from mini_r1.training.phases import IDLE, LOGPS, PHASES, REWARD, ROLLOUT, UPDATE

pytestmark = pytest.mark.slow

# With a reference model, so that there are log-probabilities to compute.
SETTINGS = {"max_steps": 3, "beta": 0.01}


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chaos.undisturbed(tmp_path_factory.mktemp("profiled") / "run", **SETTINGS, profile=2)


def medians(run: Path) -> dict[str, float]:
    """Phase -> seconds of rank 0, from the page; `step` is the whole."""
    rows = [line.strip("| ").split(" | ") for line in (run / "profile" / "breakdown.md").read_text().splitlines()]
    return {row[0]: float(row[1]) for row in rows if row[0] in (*PHASES, "step")}


def ranges(run: Path) -> list[tuple[str, float, float]]:
    """The phases in a trace: name, begin and end in microseconds."""
    with gzip.open(run / "profile" / "trace-rank-0.json.gz") as stream:
        events = json.load(stream)["traceEvents"]
    found = [event for event in events if event.get("cat") == "user_annotation" and event["name"] in PHASES]
    return sorted(((event["name"], event["ts"], event["ts"] + event["dur"]) for event in found), key=lambda r: r[1])


def test_the_run_is_the_one_without_a_profile(profiled: Path, tmp_path: Path):
    plain = chaos.undisturbed(tmp_path / "run", **SETTINGS)
    assert chaos.differences(profiled, plain) == []
    assert not (plain / "profile").exists()


def test_the_page_adds_up(profiled: Path):
    seconds = medians(profiled)
    step = seconds.pop("step")
    assert sum(seconds.values()) == pytest.approx(step, abs=0.004)  # six numbers of three decimals
    assert all(seconds[name] > 0 for name in (ROLLOUT, LOGPS, REWARD, UPDATE, IDLE))
    # TRL's own clock, which leaves the optimizer out.
    log = json.loads((profiled / "trainer_state.json").read_text())["log_history"]
    (of_trl,) = [entry["step_time"] for entry in log if entry["step"] == 2 and "step_time" in entry]
    assert of_trl - 0.001 < step < of_trl + 1
    page = (profiled / "profile" / "breakdown.md").read_text()
    assert "1 step from step 2 on" in page
    assert "step 3 was traced" in page
    assert "16 completions a step" in page
    assert page.count("| `aten::") >= 3  # of the five most expensive operators
    said = Path(f"{profiled}.log").read_text()
    assert f"s a step: {ROLLOUT}" in said
    assert f"{profiled}/profile/breakdown.md, trace-rank-0.json.gz (" in said


def test_the_trace_holds_one_step_and_its_phases(profiled: Path):
    found = ranges(profiled)
    names = [name for name, _, _ in found]
    assert {ROLLOUT, LOGPS, REWARD, UPDATE, IDLE} == set(names)
    assert (names.count(ROLLOUT), names.count(REWARD)) == (1, 1)  # neither another step's nor the evaluation's
    assert all(end <= begin for (_, _, end), (_, begin, _) in pairwise(found))


def test_without_the_key_nothing_is_wrapped(tmp_path: Path):
    from mini_r1.training.profiling import attach

    wrapped = {"_prepare_inputs", "_generate_single_turn", "_calculate_rewards", "_compute_loss"}
    trainer = make_trainer(tmp_path)
    assert not wrapped & vars(trainer).keys()
    attach(trainer, 1)
    assert wrapped <= vars(trainer).keys()


def test_fewer_steps_than_asked_for_and_a_folder_that_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    from mini_r1.training.profiling import attach

    (tmp_path / "profile").touch()
    trainer = make_trainer(tmp_path, max_steps=2, save_strategy="no")
    attach(trainer, 5)
    trainer.train()
    assert trainer.state.global_step == 2
    assert "profile: 5 steps asked for" in caplog.text
    assert "the profile cannot be written" in caplog.text
