"""What a run leaves: `output_dir` and its readable samples; one writer, one reader (README.md beside this file).

| file | written by | holds |
|---|---|---|
| `run.json` | folder | the resolved recipe, task, versions, commit, hardware, split, identity |
| `checkpoint-N/`, its `manifest.json` last | training, manifest | everything to resume from step N |
| `set-aside/` | resume | checkpoints that no start may resume from |
| `tensorboard/`, `trainer_state.json` (last of all) | transformers | the log; the second marks the run as finished |
| `samples/*.jsonl`, `completion_samples/NAME/*.txt` | samples | kept completions, for programs and for people |
| `held_out.json` | folder | held-out success over the run |
| `profile/` | training | where the time of some steps went, if the recipe says `profile` |
"""

RUN_DESCRIPTION = "run.json"
MANIFEST = "manifest.json"
TRAINER_STATE = "trainer_state.json"
HELD_OUT = "held_out.json"
SET_ASIDE = "set-aside"
SAMPLES = "samples"
PROFILE = "profile"
