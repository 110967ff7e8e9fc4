"""Write a recipe's puzzles as a data set: held-out and training ones as parquet, with a card, ready for the Hub.

    python scripts/make_dataset.py --config receipes/grpo-tiny-countdown-cpu.yaml --output runs/dataset
    python scripts/evaluate.py configs/tiny-countdown --puzzles runs/dataset/test.parquet

`test.parquet` holds the held-out puzzles in the order in which a run evaluates them, so that evaluating on the file
gives the numbers of evaluating on the recipe's own. `datasets.load_dataset("runs/dataset")` has the splits `train` and
`test`. Keys of the recipe may follow as in a run, `--dataset_rows 1000`. To train on the same split again, write
`dataset_id_or_path: runs/dataset`, `dataset_split: train+test` and `dataset_rows: 0`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mini_r1.common import ArgumentParser, DiskError, masked, refuse_filled, run_cli
from mini_r1.task import Split, Task
from run_r1_grpo import TASK

GENERATE = "generate"
CARD = """---
{front}pretty_name: {name}
configs:
- config_name: default
  data_files:
  - split: train
    path: train.parquet
  - split: test
    path: test.parquet
---

# {name}

Puzzles with answers that a program can verify, for reinforcement learning and evaluation. One row:

    {row}

asks a model:

> {prompt}

## Splits

`train`: {train} puzzles to train on. `test`: {test} held-out puzzles, in the order in which evaluations take them. A
hash of each puzzle's identity (of Countdown: its sorted numbers and its target) decides its side, so no puzzle of
`test` is in `train`, in whatever order of its numbers. About {share:.1%} of all possible puzzles are held out.

| kind of puzzle | train | test |
|---|---|---|
{strata}

## Columns

| column | type |
|---|---|
{columns}

`stratum` is the kind of puzzle, by which results are reported.

## How it was made

With `scripts/make_dataset.py` of Mini-R1, which makes the same files again from these keys:

{keys}

## Licence

{licence}
"""


def card(name: str, task: Task, arguments: Any, split: Split, tables: dict[str, Any]) -> str:
    """The data set's README.md.

    Args:
        name: the data set's.
        task, arguments: what was asked for.
        split: the puzzles.
        tables: the same by split, as pyarrow tables.
    """
    counts = {part: Counter(table["stratum"].to_pylist()) for part, table in tables.items()}
    source = getattr(arguments, "dataset_id_or_path", GENERATE)
    train = tables["train"]
    return CARD.format(
        front="license: apache-2.0\n" if source == GENERATE else "",
        name=name,
        row={field: column[0].as_py() for field, column in zip(train.column_names, train.columns, strict=True)},
        prompt=task.question(split.train[0]),
        train=len(split.train),
        test=len(split.held_out),
        share=split.share,
        strata="\n".join(
            f"| {kind} | {counts['train'][kind]} | {counts['test'][kind]} |" for kind in sorted(counts["train"])
        ),
        columns="\n".join(f"| `{field.name}` | {field.type} |" for field in tables["train"].schema),
        keys="\n".join(f"    {key}: {value}" for key, value in masked(vars(arguments)).items()),
        licence="Apache 2.0." if source == GENERATE else f"That of {masked(source)}, where these puzzles come from.",
    )


def table_of(task: Task, puzzles: Sequence[Any], schema: Any = None) -> Any:
    """The puzzles' fields and kinds as a pyarrow table."""
    import pyarrow as pa
    from tqdm import tqdm

    columns = {field: [getattr(puzzle, field) for puzzle in puzzles] for field in task.puzzle._fields}
    columns["stratum"] = [task.stratum(puzzle) for puzzle in tqdm(puzzles, desc="kinds", disable=None)]
    return pa.table(columns, schema)


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the data set goes")
    args, rest = parser.parse_known_args(argv)
    refuse_filled(args.output)
    from mini_r1.recipe.parsing import read_draft

    asked = read_draft(rest, TASK, __doc__).resolved
    arguments = TASK.arguments(**{key: asked[key] for key in TASK.arguments.__dataclass_fields__})
    split = TASK.load(arguments, True)
    train = table_of(TASK, split.train)
    tables = {"train": train, "test": table_of(TASK, split.held_out, train.schema)}
    try:
        import pyarrow.parquet as pq

        args.output.mkdir(parents=True, exist_ok=True)
        for part, table in tables.items():
            pq.write_table(table, args.output / f"{part}.parquet")
        text = card(args.output.resolve().name, TASK, arguments, split, tables)
        (args.output / "README.md").write_text(text, encoding="utf-8")
    except OSError as error:
        raise DiskError(f"cannot write to {args.output}: {error}; name another folder with --output") from error
    print(
        f"{len(split.train)} puzzles to train on and {len(split.held_out)} held-out ones in {args.output}\n"
        f"evaluate on them: python scripts/evaluate.py CHECKPOINT --puzzles {args.output}/test.parquet\n"
        f"publish them (not run here): read {args.output}/README.md, then\n"
        f"  hf upload NAME/{args.output.resolve().name} {args.output} . --repo-type dataset"
    )


if __name__ == "__main__":
    run_cli(main)
