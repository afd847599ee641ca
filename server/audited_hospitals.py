"""The simulated hospitals at which a finished run's model is audited: those of given folders, or the run's own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from server.run_folder import PLAN, SimulationPlan
from server.simulation import hospitals_of

if TYPE_CHECKING:
    from server.model_reference import FoundModel
    from server.progress import Progress
    from server.simulation import Hospitals


@contextmanager
def audited_hospitals(
    found: FoundModel,
    data: Sequence[Path],
    *,
    sites: int | None,
    partition: str | None,
    device: str,
    home: Path,
    progress: Progress,
) -> Iterator[Hospitals]:
    """Hospitals with images as the model's configuration prepares and divides them.

    Args:
        found: the model.
        data, sites, partition: as in `server.simulation.simulate`; no folder: those of the run's own simulation.
        device: torch device of the sites.
        home: the folder of all runs.
        progress: shows what happens.

    Raises:
        InputError: they do not fit together.
    """
    folder = found.folder.parent
    plan = SimulationPlan.load(folder) if (folder / PLAN).is_file() else None
    folders = list(data)
    if not folders and plan is not None:
        folders = [Path(path) for path in plan.data]
        if sites is None and partition is None:
            sites, partition = plan.sites, plan.partition
    dealt_by = None if plan is None else plan.dealt_by
    with tempfile.TemporaryDirectory() as scratch:  # for the sites' state, which ends with the audit
        yield hospitals_of(found.config, folders, sites, partition, device, home, Path(scratch), progress, dealt_by)
