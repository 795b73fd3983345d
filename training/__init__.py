"""Offline training: patches with masks to a checkpoint. Each stage is `python -m training.<stage>`.

The stages are, in order, `tokenizer`, `tokens`, `prior`, `export`. All write to one run folder.
"""

import model  # noqa: F401  # before torch is loaded: it sets how torch's threads wait
