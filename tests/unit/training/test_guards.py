"""Each guard speaks when it should and is silent otherwise; those that stop a run leave a checkpoint to resume from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import chaos
import forked_run
from conftest import draft
from mini_r1.recipe.arguments import GuardArguments
from mini_r1.run_folder.manifest import fault_in, read_description
from mini_r1.training.guards import GAP_METRIC, Guards

FORMAT = "rewards/format_reward_func/mean"
# A step as a healthy run logs it.
GOOD: dict[str, Any] = {
    "reward": 0.9, "loss": 0.01, "grad_norm": 0.5, "frac_reward_zero_std": 0.3, FORMAT: 0.6, "entropy": 0.4,
    "completions/clipped_ratio": 0.05, "kl": 0.02, "step_time": 2.0, GAP_METRIC: 0.01,
}  # fmt: skip


def guards(**changes: Any) -> Guards:
    return Guards(draft(**{"max_completion_length": 64, "reward_weights": None, "fp16": False, **changes}))


def heard(watch: Guards, steps: int, first: int = 1, every: int = 1, **changes: Any) -> list[tuple[int, str, bool]]:
    """What a watch says over so many log entries: (step, message, whether it stops)."""
    said = []
    for step in range(first, first + steps * every, every):
        said += [(step, alarm.message, alarm.stops) for alarm in watch.observe(step, {**GOOD, **changes})]
    return said


def evaluation(success: float) -> dict[str, float]:
    return {
        f"eval_pass@1{end}/all puzzles": success + more for end, more in (("", 0), ("_low", -0.03), ("_high", 0.03))
    }


@pytest.mark.parametrize(("curve", "heard_at"), [
    ([0.3, 0.7, 0.8, 0.78, 0.75], []),
    ([0.3, 0.8, 0.73, 0.2, 0.82], [10, 15]),
    ([0.8, 0.3], [5]),
])  # fmt: skip
def test_a_fall_of_held_out_success_beyond_both_intervals_is_told(curve: list[float], heard_at: list[int]):
    watch, quiet = guards(), guards(guard_held_out=False)
    said = [watch.observe(5 * index, evaluation(success)) for index, success in enumerate(curve)]
    assert [5 * index for index, alarms in enumerate(said) if alarms] == heard_at
    assert all("held-out success fell to" in alarm.message and not alarm.stops for alarms in said for alarm in alarms)
    assert not any(quiet.observe(0, evaluation(success)) for success in curve)


def test_a_healthy_run_hears_nothing():
    assert heard(guards(), 500) == []


@pytest.mark.parametrize(
    ("changes", "at", "words", "stops"),
    [
        ({"frac_reward_zero_std": 1.0, "reward": 2.0}, 30, "too easy", True),
        ({"frac_reward_zero_std": 1.0, "reward": 0.0}, 30, "too hard", True),
        ({"completions/clipped_ratio": 0.97}, 15, r"97% .* cut off at max_completion_length \(64\)", False),
        ({"kl": 4.0}, 15, "lower learning_rate or raise beta", False),
        ({"entropy": 1.3}, 15, "turning into noise", False),
        ({"entropy": 1e-5}, 15, "raise temperature", False),
        ({GAP_METRIC: 0.8}, 15, "another model than the one that is trained", True),
        ({"step_time": 25.0}, 11, r"took 25.0 s, usually it is 2.0 s", False),
        ({"loss": float("nan")}, 11, "the loss is not a finite number", True),
        ({"grad_norm": float("inf")}, 11, "the gradient is not a finite number", True),
    ],
)  # fmt: skip
def test_trouble_is_told_at_the_right_step_with_cause_and_change(changes: dict, at: int, words: str, stops: bool):
    import re

    watch = guards()
    assert heard(watch, 10) == []
    said = heard(watch, 30, first=11, **changes)
    step, message, stop = said[0]
    assert (step, stop) == (at, stops)
    assert re.search(words, message)
    if not stops and "step_time" not in changes:  # said once, and again when it comes back
        assert len(said) == 1
        assert heard(watch, 1, first=41) == []
        assert len(heard(watch, 10, first=42, **changes)) == 1


def test_no_format_from_the_beginning_stops_but_a_lost_one_is_left_to_the_reward():
    assert heard(guards(guard_format_steps=7), 10, **{FORMAT: 0.0})[0][::2] == (7, True)
    watch = guards(guard_format_steps=7)
    heard(watch, 1)
    assert heard(watch, 50, first=2, **{FORMAT: 0.0}) == []


@pytest.mark.parametrize("off", [{"frac_reward_zero_std": 1.0}, {"kl": 4.0}], ids=["rewards", "policy"])
def test_steps_count_not_log_entries(off: dict[str, float]):
    said = heard(guards(guard_zero_spread_steps=20, guard_patience=20), 30, every=5, first=5, **off)
    assert said[0][0] == 25  # the first entry counts one step: how many lie before it is not known after a resume


def test_a_group_that_differs_begins_the_count_anew():
    watch = guards(guard_zero_spread_steps=5)
    heard(watch, 4, frac_reward_zero_std=1.0)
    heard(watch, 1, first=5)
    assert heard(watch, 4, first=6, frac_reward_zero_std=1.0) == []


def test_steps_on_earlier_completions_are_watched_though_they_log_no_reward():
    watch = guards()
    entry = {key: value for key, value in GOOD.items() if key not in ("reward", FORMAT, "frac_reward_zero_std")}
    assert watch.observe(1, entry) == []
    assert [alarm.stops for alarm in watch.observe(2, {**entry, "loss": float("inf")})] == [True]


def test_fp16_overflows_on_purpose():
    assert heard(guards(fp16=True), 3, grad_norm=float("inf")) == []


def test_every_guard_can_be_turned_off():
    off = dict.fromkeys(GuardArguments.__dataclass_fields__, 0) | {"guard_patience": 1, "guard_non_finite": False}
    bad = {"frac_reward_zero_std": 1.0, "completions/clipped_ratio": 1.0, "kl": 99.0, GAP_METRIC: 9.0, FORMAT: 0.0}
    watch = guards(**off)
    heard(watch, 10, **bad)
    assert heard(watch, 300, first=11, **bad, entropy=9.0, loss=float("nan"), step_time=1000.0) == []


def test_evaluations_and_the_closing_entry_are_not_steps():
    watch = guards(guard_zero_spread_steps=1)
    assert watch.observe(3, {"eval_reward": 0.0, "eval_frac_reward_zero_std": 1.0}) == []
    assert watch.observe(3, {"train_runtime": 9.0}) == []


# ---- real runs -----------------------------------------------------------------------------------------------------

QUICK = {"max_steps": 6, "dataset_rows": 60}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chaos.undisturbed(tmp_path_factory.mktemp("reference") / "run", **QUICK)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "what"),
    [
        pytest.param(("nan_loss", 10), "the loss is not a finite number", id="loss"),
        pytest.param(
            ("infinite_gradient", 10), "the gradient is not a finite number", marks=pytest.mark.long, id="gradient"
        ),
    ],
)
def test_a_poisoned_step_never_reaches_the_weights(fault: tuple, what: str, reference: Path, tmp_path: Path):
    run = tmp_path / "run"
    assert forked_run.finish(chaos.start(run, fault, **QUICK)) == 1  # in the fifth step: two micro-batches each
    (line,) = [line for line in Path(f"{run}.log").read_text().splitlines() if line.startswith("error: ")]
    assert what in line
    assert "lower learning_rate" in line
    assert f"step 4 is saved in {run}/checkpoint-4" in line
    assert forked_run.finish(chaos.start(run, **QUICK)) == 0, Path(f"{run}.log").read_text()
    assert read_description(run)["resumed_from"] == f"{run}/checkpoint-4"
    assert chaos.differences(run, reference) == []  # the step that was not made left no trace


@pytest.mark.slow
@pytest.mark.long
def test_a_step_between_saves_is_saved_as_it_was_before_the_trouble(reference: Path, tmp_path: Path):
    run = tmp_path / "run"
    assert forked_run.finish(chaos.start(run, ("nan_loss", 11), **QUICK)) == 1
    assert forked_run.finish(chaos.start(run, ("nan_loss", 2), **QUICK)) == 1  # in the first step after it
    assert "step 5 is saved" in Path(f"{run}.log").read_text()
    assert forked_run.finish(chaos.start(run, **QUICK)) == 0, Path(f"{run}.log").read_text()
    assert chaos.differences(run, reference) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"guard_zero_spread_steps": 3}, "in 3 steps no group's rewards differed"),
        pytest.param({"guard_format_steps": 4}, "in 4 steps no completion had the format", marks=pytest.mark.long),
    ],
)
def test_a_run_that_cannot_learn_is_stopped(changes: dict[str, Any], words: str, tmp_path: Path):
    run = tmp_path / "run"
    # Nobody reasons and answers in four tokens.
    assert forked_run.finish(chaos.start(run, **{**QUICK, "max_completion_length": 4, **changes})) == 1
    output = Path(f"{run}.log").read_text()
    assert words in output
    step = next(iter(changes.values()))
    assert fault_in(run / f"checkpoint-{step}") is None
    assert not (run / "trainer_state.json").exists()  # it is not finished
