"""Offline training: patches with masks to a checkpoint. Each stage is `python -m training.<stage>`.

Stages in order: `tokenizer`, `tokens`, `prior`, `export`. All write under one run folder.
"""
