"""Turn one run folder, or several to compare, into curves (PNG) and one page (HTML) with a sample browser.

    python scripts/report.py runs/tiny                      # runs/tiny/report.html and report.png
    python scripts/report.py runs/a runs/b --output compare

The page is one file that needs no network and can be mailed as it is. It holds the curves, the recipe and everything
else that `run.json` says, the results of evaluations, and all kept samples to filter, search and step through. Runs
that are still running work too: report again for a fresher page.
"""

from __future__ import annotations

import time
from pathlib import Path

from mini_r1.common import ArgumentParser, DiskError, run_cli


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder (a run's output_dir)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where the files go (default: the first RUN)")
    args = parser.parse_args(argv)

    from mini_r1.report.charts import draw_curves
    from mini_r1.report.page import build_page, describe_state
    from mini_r1.run_folder.record import read_run

    runs = [read_run(folder) for folder in args.runs]
    output = args.output or args.runs[0]
    page, picture = output / "report.html", output / "report.png"
    try:
        output.mkdir(parents=True, exist_ok=True)
        page.write_text(build_page(runs), encoding="utf-8")
        has_curves = draw_curves(runs, picture)
    except OSError as error:
        raise DiskError(f"cannot write to {output}: {error}; name another folder with --output") from error

    for run in runs:
        state = describe_state(run, time.time())
        print(f"{run.name}: {state}, {len(run.held_out)} evaluations, {len(run.samples)} samples")
    print(f"curves: {picture if has_curves else 'none yet: nothing was logged'}\npage:   {page}")


if __name__ == "__main__":
    run_cli(main)
