"""``results.json``: every final figure of a run, machine-readable; the report and ``--json`` show nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.downstream.metrics import ProbeScore
from aiseeme_models.downstream.pooled import PooledScore
from aiseeme_models.errors import InputError
from aiseeme_models.printable import LONGEST_LINE, printable
from server.tuning.found import FoundSetting

__all__ = ["FILE", "Baselines", "MissedRound", "Probes", "Results", "Seconds", "SiteResult", "StageResult", "printable"]

FILE = "results.json"

# Site names, reasons and labels may come from a hospital's machine: nothing in them is trusted.
Text = Annotated[str, AfterValidator(printable)]
Reason = Annotated[str, AfterValidator(lambda text: printable(text, LONGEST_LINE))]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StageResult(_Part):
    """One stage.

    ``near_chance``: its last loss is above 0.75 of what a model that knows nothing would have. ``found``: its rate and
    batch size, where they were looked for. ``best_round``: the one whose weights it ended with, where the held-out loss
    chose it.
    """

    task: Text
    rounds: int
    rounds_done: int
    stopped_by: Literal["rounds", "plateau", "probe"] | None
    loss_first: float | None
    loss_last: float | None
    heldout_loss: float | None
    chance_loss: float | None
    near_chance: bool
    found: FoundSetting | None = None
    best_round: int | None = None


class MissedRound(_Part):
    """A round in which a site did not count, and why, in the coordinator's own words."""

    round: int
    code: Text
    reason: Text


class SiteResult(_Part):
    """One site. ``images`` are its training images; ``classes`` counts all its labelled ones.

    Where patients are protected ``images`` counts patients, rounded down to ten, nothing is said of what was left out,
    and ``epsilon`` is what the run has cost them.

    ``rejected`` counts what was left out, by reason; a count under 5 left the site as ``"<5"``. ``images_per_s`` is its
    speed in training, over all rounds.
    """

    name: Text
    images: int
    rejected: dict[Text, int | Literal["<5"]]
    rounds_answered: int
    missed: list[MissedRound]
    classes: dict[Text, int] | None = None
    epsilon: float | None = None
    images_per_s: float | None = None

    @property
    def left_out(self) -> str:
        """How many files and images were left out, in words that hold no small number: "1,204", "<5", "over 1,200"."""
        exact = sum(count for count in self.rejected.values() if count != "<5")
        few = sum(count == "<5" for count in self.rejected.values())
        if not few:
            return f"{exact:,}"
        if not exact:
            return "<5" if few == 1 else "a few"
        return f"over {exact:,}"


class Probes(_Part):
    """The two probes of one backbone."""

    linear: ProbeScore
    knn: ProbeScore


class Baselines(_Part):
    """What the backbone must beat: itself before training, and a thumbnail."""

    random: Probes
    floor: ProbeScore


class FederatedTest(_Part):
    """What the sites told of a classifier on their own test patients, of whom no prediction left them.

    ``sites``: test images of each site that told.
    """

    sites: dict[Text, int]
    score: PooledScore


class Downstream(_Part):
    """How well a classifier that the federation trained does its task, on test patients who are in no training.

    In a simulation ``pooled`` is over the test images of all sites, ``sites`` over each one's own. The temperature of
    their calibration was fitted on ``n_validation`` validation images; without enough of them there is none.
    ``floor`` is what thumbnails of the same training images tell about the same test images, whatever the mode.
    ``federated`` is what can be known without moving a prediction, and all that is known of real hospitals. Where
    ``head`` is ``"personal"`` every site's images are tested with its own.
    """

    mode: Text
    head: Literal["global", "personal"] = "global"
    classes: list[Text]
    labels: float
    pooled: ProbeScore | None = None
    sites: dict[Text, ProbeScore] = {}
    n_validation: int = 0
    floor: ProbeScore | None = None
    federated: FederatedTest | None = None


class Seconds(_Part):
    """Wall time over all processes of the run; ``training`` is at the sites, ``overhead`` the rest of the rounds."""

    total: float
    training: float
    overhead: float


class Results(_Part):
    """What a run came to.

    ``weights_bytes``: of the weights that travelled in rounds, to the sites that counted and back.
    """

    run: Text
    name: Text
    status: Literal["done", "failed"]
    reason: Reason
    version: Text
    seed: int
    config_sha256: Text
    backbone_sha256: Text | None
    rounds_done: int
    rounds_total: int
    stages: list[StageResult]
    sites: list[SiteResult]
    probe: Probes | None = None
    probe_note: Text | None = None
    baselines: Baselines | None = None
    downstream: Downstream | None = None
    initial: Text | None = None
    seconds: Seconds
    phantom: bool = False
    delta: float | None = None
    site_epsilon: float | None = None
    site_delta: float | None = None
    weights_bytes: int | None = None

    @property
    def epsilon(self) -> float | None:
        """The most that the run has cost a patient of any site, at ``delta``; None where patients are not protected."""
        spent = [site.epsilon for site in self.sites if site.epsilon is not None]
        return max(spent) if spent and self.delta is not None else None

    def counted_throughout(self, site: SiteResult) -> bool:
        """Whether ``site`` counted in every round that was done."""
        return not site.missed and site.rounds_answered >= self.rounds_done

    @property
    def complete_sites(self) -> int:
        """How many sites counted in every round that was done."""
        return sum(self.counted_throughout(site) for site in self.sites)

    @property
    def complete(self) -> bool:
        """Whether the run is done and every site counted in every round."""
        return self.status == "done" and self.complete_sites == len(self.sites)

    def save(self, run_folder: Path) -> Path:
        """Write ``results.json`` atomically."""
        path = run_folder / FILE
        write_atomically(path, self.model_dump_json(indent=2).encode())
        return path

    @classmethod
    def load(cls, run_folder: Path) -> Results:
        """Read ``results.json``.

        Raises:
            InputError: it is missing or not what a run writes.
        """
        path = run_folder / FILE
        if not path.is_file():
            raise InputError(f"{run_folder}: no {FILE}; a run writes one when it ends")
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise InputError(f"{path}: {where}: {first['msg']}") from None
