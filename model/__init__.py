"""The method: tokenizer, prior, sampling, engine, checkpoints. Imports no other package."""

import os

# torch's worker threads spin while they wait. When anything else wants a core that costs many times
# what it saves: one image's pixels took 190 ms in place of 25 beside one busy process. OpenMP reads
# this once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
