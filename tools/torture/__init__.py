"""Long trials of what this package promises about a run that is killed, damaged, starved or told to stop.

A module here is one trial: it has `main(arguments)`, which takes `--quick`, `--seed` and `--out FILE`, prints a table
of promise, figure asked and figure measured, and returns 0 if every line holds. `python tools/torture` lists and runs
them. What they share is in `table` (lines and records) and `runs` (tiny runs, each forked from one warm process).
"""
