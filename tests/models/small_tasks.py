"""Options that make the tasks fit toy images, by the tasks' names."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, dict[str, Any]] = {
    "deepcluster": {"clusters": 8},
    "moco": {"queue": 16},
    "npid": {"negatives": 48, "temperature": 0.2},
    "swav": {"prototypes": 8, "epsilon": 0.01, "local_crops": 1, "freeze": 0.0, "queue": 16, "queue_from": 0.5},
}
