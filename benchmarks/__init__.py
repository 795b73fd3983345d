"""Speed measured against peers: each prints a table for people and one last line of JSON."""

import model  # noqa: F401  # before torch is loaded: it sets how torch's threads wait
