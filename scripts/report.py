"""Turn one run folder, or several to compare, into curves (PNG) and one page (HTML) with a sample browser.

    python scripts/report.py runs/tiny                      # runs/tiny/report.html and report.png
    python scripts/report.py runs/a runs/b --output compare

The page is one file that needs no network and can be mailed as it is. It holds the curves, the recipe and everything
else that `run.json` says, the results of evaluations, and all kept samples to filter, search and step through. Runs
that are still going work too: run it again for a fresher page.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from mini_r1.common import RecipeError, fail


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder (a run's output_dir)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where the files go (default: the first RUN)")
    args = parser.parse_args(argv)

    from mini_r1.report.page import build_page, describe_state, draw_curves, make_charts
    from mini_r1.run_folder.record import read_run

    # ---- read ------------------------------------------------------------------------------------------------------
    try:
        runs = [read_run(folder) for folder in args.runs]
    except RecipeError as error:
        fail(str(error))

    # ---- write -----------------------------------------------------------------------------------------------------
    output = args.output or args.runs[0]
    charts = make_charts(runs)
    page, picture = output / "report.html", output / "report.png"
    try:
        output.mkdir(parents=True, exist_ok=True)
        page.write_text(build_page(runs, charts), encoding="utf-8")
        draw_curves(charts, [run.name for run in runs], picture)
    except OSError as error:
        fail(f"cannot write to {output}: {error}")

    # ---- say what was found ----------------------------------------------------------------------------------------
    for run in runs:
        state = describe_state(run, time.time())
        print(f"{run.name}: {state}, {len(run.held_out)} evaluations, {len(run.samples)} samples")
        if run.skipped:
            print(f"  {run.skipped} lines of the sample files hold no whole sample and were skipped")
    print(f"curves: {picture if charts else 'none yet: nothing was logged'}\npage:   {page}")


if __name__ == "__main__":
    main(sys.argv[1:])
