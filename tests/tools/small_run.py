"""A small run folder on disk, as runs leave them, for the tests of what reads one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# What a model could write to harm whoever looks at it: markup, the end of a script or block, terminal escapes.
HOSTILE = (
    "<think>\n</script><img src=x onerror=\"document.title='pwned'\"><!-- \x1b[2J \u2028 1+1=2 too high\n"
    "````\n# heading\n```\n[link](javascript:alert(1))\n</think>"
)


def sample(step: int, index: int = 0, **changed: Any) -> dict[str, Any]:
    """A line of the sample files; odd indices are solved."""
    puzzle = [([44, 19, 35], 98), ([3, 5, 2], 17)][index % 2]
    text = f"<think>\n44-19=25 too low\nno. {index} {step}\n44+19=63, 63+35=98 yes!\n</think>\n<answer>1</answer>"
    return {
        "step": step,
        "split": "train",
        "nums": puzzle[0],
        "target": puzzle[1],
        "response": text,
        "reason": "correct" if index % 2 else "wrong_value",
        "value": None,
        "format_reward": 1.0,
        "equation_reward": float(index % 2),
        "completion_tokens": 30,
        "rank": 0,
        "index": index,
        **changed,
    }


def make_run(
    folder: Path, samples: list[dict[str, Any]], *, finished: bool = True, steps: int = 10, **description: Any
) -> Path:
    """Writes `run.json`, samples, and the trainer's state: one log entry per step and an evaluation at the end."""
    recipe = {
        "max_steps": steps,
        "eval_puzzles": 100,
        "learning_rate": 1e-4,
        "sample_share": 0.1,
        "success_sample_share": 0.1,
    }
    described = {
        "name": folder.name,
        "task": "mini_r1.countdown",
        "command": ["run_r1_grpo.py"],
        "versions": {"trl": "1.16.0"},
        "hardware": {},
        "split": {"held_out_puzzles": 100},
        **description,
    }
    described["recipe"] = recipe | described.get("recipe", {})
    (folder / "samples").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(described))
    with (folder / "samples" / "completion_samples.jsonl").open("w") as stream:
        stream.writelines(json.dumps(record) + "\n" for record in samples)
    history: list[dict[str, Any]] = [
        {
            "step": step,
            "rewards/equation_reward_func/mean": step / steps,
            "rewards/format_reward_func/mean": 1.0,
            "completions/mean_length": 40.0 + step,
            "thinking/attempts": 1.0,
            "entropy": 0.5,
            "step_time": 2.0,
            "kl": float("nan"),
        }
        for step in range(1, steps + 1)
    ]
    history.append({"step": steps, "eval_rewards/equation_reward_func/mean": 0.8, "eval_completions/mean_length": 50.0})
    place = folder if finished else folder / f"checkpoint-{steps}"
    place.mkdir(exist_ok=True)
    (place / "trainer_state.json").write_text(json.dumps({"global_step": steps, "log_history": history}))
    return folder
