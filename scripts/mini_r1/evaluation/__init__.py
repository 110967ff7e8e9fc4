"""What completions are worth: pass@k by kind of puzzle with intervals (`scores`), and the tables people read (`table`).

`generation.sampling` draws the completions, `scripts/evaluate.py` is the command line. The unit of every interval is
the puzzle, not the completion, and changes between checkpoints are paired by puzzle. Nothing here loads a model.
"""
