"""The rules as an object of the Prometheus operator: prints what belongs into the component.

    python deploy/prometheus/kubernetes.py > deploy/kubernetes/components/monitoring/rules.yaml

The rules stay as they are; the component writes the address of the runbook into them.
"""

from __future__ import annotations

from pathlib import Path

import yaml

RULES = Path(__file__).parent / "rules" / "pathar.yml"
HEAD = """# Made by deploy/prometheus/kubernetes.py from the rules in deploy/prometheus/rules.
"""


def build() -> dict[str, object]:
    """The object."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "pathar"},
        "spec": yaml.safe_load(RULES.read_text()),
    }


def main() -> None:
    """Print it."""
    print(HEAD + yaml.safe_dump(build(), sort_keys=False, width=100), end="")


if __name__ == "__main__":
    main()
