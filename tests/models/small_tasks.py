"""Options that make the tasks fit toy images, by the tasks' names."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, dict[str, Any]] = {
    "moco": {"queue": 16},
    "deepcluster": {"clusters": 8},
    "npid": {"negatives": 48, "temperature": 0.2},
    "swav": {"prototypes": 8, "epsilon": 0.01, "local_crops": 1, "freeze": 0.0, "queue": 16, "queue_from": 0.5},
    "moco-v1": {"queue": 16},
    "barlow-twins": {"hidden_dim": 64, "projection_dim": 64},
    "vicreg": {"hidden_dim": 64, "projection_dim": 64},
    "dino": {
        "local_crops": 2,
        "output_dim": 16,
        # A few dozen steps: teacher and centre must follow at once.
        "momentum": 0.5,
        "centre_momentum": 0.0,
        "first_teacher_temperature": 0.02,
        "teacher_temperature": 0.02,
    },
}
