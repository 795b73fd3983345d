"""What a checkpoint's samples are worth, figure by figure; `python -m training.evaluate` runs all.

Each module knows one family of figures, takes pairs and gives `Metric`s. None knows the report.
"""
