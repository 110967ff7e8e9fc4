"""The Countdown numbers game.

A *puzzle* is a list of positive integers `nums` and an integer `target`. An *equation* solves it when it uses every
given number exactly once (as a multiset), nothing but `+ - * /`, unary minus and parentheses, and its exact value is
the target. Division is exact rational division, so `7 / 2 * 4` is 14.

Standard library and numpy only: this room knows nothing of models.
"""
