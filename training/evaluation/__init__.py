"""What a checkpoint's samples are worth, figure by figure; `python -m training.evaluate` runs all.

Modules that know one family of figures take pairs and give `Metric`s; `study` has what is measured,
`chapters` puts the two together, `report` writes.
"""
