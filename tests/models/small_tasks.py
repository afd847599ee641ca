"""Options and images that make the tasks fit toy tests, by the tasks' names."""

from __future__ import annotations

from typing import Any

from aiseeme_models.errors import InputError
from aiseeme_models.pretext import pretext_tasks

SMALL: dict[str, dict[str, Any]] = {
    "jigsaw": {"permutations": 4},
    "moco": {"queue": 16},
    "deepcluster": {"clusters": 8},
    "npid": {"negatives": 48, "temperature": 0.2},
    "swav": {"prototypes": 8, "epsilon": 0.01, "local_crops": 1, "freeze": 0.0, "queue": 16, "queue_from": 0.5},
    "moco-v1": {"queue": 16},
    "multi-task": {"tasks": [{"task": "rotation"}, {"task": "simclr"}], "weighting": "uncertainty"},
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


def toy_side(name: str) -> int:
    """The side of the smallest toy images that a task takes: 32 px, or 48 where it says that these are too small."""
    kind = pretext_tasks[name]
    options = kind.options_type(**SMALL.get(name, {}))
    norm = "group" if "batch" in kind.collapses_with else "batch"
    try:
        kind.check(options, norm=norm, batch_size=16, image_size=32, channels=3)
    except InputError:
        return 48
    return 32


def required(name: str) -> dict[str, Any]:
    """Those of the options above without which there is no task."""
    fields = pretext_tasks[name].options_type.model_fields
    return {key: value for key, value in SMALL.get(name, {}).items() if fields[key].is_required()}
