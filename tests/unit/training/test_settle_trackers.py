"""What a recipe's trackers turn on, and a wandb server that does not answer; runs/test_trackers.py starts real runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from mini_r1.common import RunError
from mini_r1.training.trackers import settle_trackers

pytestmark = pytest.mark.slow  # loads wandb


def training(*trackers: str, **given: object) -> SimpleNamespace:
    """As much of a GRPOConfig as counts here, with transformers' and TRL's defaults."""
    defaults = {"run_name": None, "project": "huggingface", "log_completions": False, "log_unique_prompts": False}
    return SimpleNamespace(**{**defaults, "num_completions_to_print": None, "report_to": list(trackers), **given})


@pytest.mark.parametrize(
    ("before", "changed"),
    [
        pytest.param(training("tensorboard"), {}, id="a tracker without tables"),
        pytest.param(
            training("tensorboard", "trackio"),
            {
                "run_name": "ours",
                "project": "mini-r1",
                "log_completions": True,
                "log_unique_prompts": True,
                "num_completions_to_print": 0,
            },
            id="one completion per puzzle, none on the console",
        ),
        pytest.param(
            training("trackio", log_completions=True, num_completions_to_print=4, run_name="mine", project="p"),
            {},
            id="what the recipe says stays",
        ),
    ],
)
def test_what_trackers_turn_on(before: SimpleNamespace, changed: dict[str, object]):
    expected = {**vars(before), **changed}
    settle_trackers(before, "ours")
    assert vars(before) == expected


def test_a_wandb_server_that_does_not_answer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import wandb

    variables = {
        "HOME": str(tmp_path),
        "WANDB_API_KEY": "a" * 40,
        "WANDB_BASE_URL": "http://127.0.0.1:1",  # nobody listens there
        "WANDB_X_GRAPHQL_RETRY_MAX": "1",
        "WANDB_X_GRAPHQL_RETRY_WAIT_MAX_SECONDS": "1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()  # it reads its variables once a session
    with pytest.raises(RunError, match=r"report_to: wandb cannot start: .*keep the run on this machine with `env: {W"):
        settle_trackers(training("wandb", output_dir=str(tmp_path)), "ours")
    wandb.teardown()
