"""What a reader must not overlook, in sentences: lost sites, rejected images, tasks and probes that show nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from aiseeme_models.downstream.metrics import ProbeScore
from server.report.audits import NOT_TESTABLE, BiasAudit
from server.report.record import Origin, RunStory
from server.results import Downstream, Results, SiteResult, StageResult

Level = Literal["good", "warn", "bad", "note"]


@dataclass(frozen=True)
class Finding:
    """A sentence and how serious it is."""

    level: Level
    text: str


def verdict(results: Results) -> Finding:
    """The run's state in a few words; success without all sites is never plain ``good``."""
    total, complete = len(results.sites), results.complete_sites
    if results.status == "failed":
        return Finding("bad", f"failed after round {results.rounds_done} of {results.rounds_total}")
    if results.status != "done":
        return Finding("warn", f"{results.status} after round {results.rounds_done} of {results.rounds_total}")
    if complete == total:
        return Finding("good", f"done, all {total} sites in every round")
    return Finding("warn", f"done, {complete} of {total} sites in every round")


def findings(record: RunStory) -> list[Finding]:
    """Everything worth saying before the figures, the gravest first."""
    results = record.results
    found: list[Finding] = []
    if results.status == "failed":
        found.append(Finding("bad", _sentence(f"The run failed: {results.reason or 'no reason was noted'}")))
    elif results.reason:
        found.append(Finding("note", _sentence(results.reason)))
    if results.phantom:
        found.append(Finding("note", "The images are phantoms: generated patterns, not patients."))
    found += [_lost(results, site) for site in results.sites if not results.counted_throughout(site)]
    found += _rejected(results)
    found += _about_stages(results)
    found += _about_probe(results)
    found += _about_origin(record.origin)
    found += _about_bias(record.audits.bias)
    if record.unread_lines:
        lines = _counted(record.unread_lines, "line")
        found.append(Finding("warn", f"metrics.jsonl: {lines} not readable, missing from the curves."))
    order = {"bad": 0, "warn": 1, "note": 2, "good": 3}
    return sorted(found, key=lambda finding: order[finding.level])


def standard_error(score: ProbeScore) -> float:
    """Binomial standard error of a balanced accuracy, from the recalls and the cases behind them."""
    tested = [entry for entry in score.per_class.values() if entry.recall is not None and entry.n_test]
    variance = sum(entry.recall * (1.0 - entry.recall) / entry.n_test for entry in tested if entry.recall is not None)
    return math.sqrt(variance) / max(len(tested), 1)


def classes_tested(score: ProbeScore) -> int:
    """How many classes have test images, at least 1: an answer that does not look at an image is right 1 in that many.

    That is the chance level of the balanced accuracy.
    """
    return max(sum(entry.n_test > 0 for entry in score.per_class.values()), 1)


def ranges(rounds: Iterable[int]) -> str:
    """``[3, 4, 5, 9]`` -> ``3-5, 9``."""
    parts: list[list[int]] = []
    for number in sorted(set(rounds)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ", ".join("-".join(str(number) for number in part) for part in parts)


def _lost(results: Results, site: SiteResult) -> Finding:
    by_reason: dict[str, list[int]] = {}
    for missed in site.missed:
        by_reason.setdefault(f"{missed.reason.rstrip('.')} ({missed.code})", []).append(missed.round)
    why = "; ".join(f"{_rounds(numbers)}: {reason}" for reason, numbers in by_reason.items())
    text = f"{site.name} contributed to {site.rounds_answered} of {_counted(results.rounds_done, 'round')}"
    return Finding("warn", f"{text}. Missed {why}." if why else f"{text}.")


def _rejected(results: Results) -> list[Finding]:
    parts = []
    for site in results.sites:
        if site.rejected:
            by_count = sorted(site.rejected.items(), key=lambda item: (0 if item[1] == "<5" else -item[1], item[0]))
            reasons = ", ".join(f"{count if count == '<5' else f'{count:,}'} {reason}" for reason, count in by_count)
            parts.append(f"{site.name} ({reasons})")
    return [Finding("warn", f"Files and images left out: {'; '.join(parts)}.")] if parts else []


def _about_stages(results: Results) -> list[Finding]:
    found = []
    for number, stage in enumerate(results.stages, start=1):
        if stage.near_chance:
            found.append(
                Finding(
                    "warn",
                    f"Stage {number}, {stage.task}, stayed near chance{_level(stage)}. The backbone learned little "
                    "from it: these images may not hold the answer that the task asks for, or the stage was too short.",
                )
            )
        if stage.found is not None:
            found.append(Finding("note", f"Stage {number}, {stage.task}: {stage.found.sentence}."))
        if stage.stopped_by in ("plateau", "probe"):
            what = "its held-out loss no longer fell" if stage.stopped_by == "plateau" else "its probe no longer rose"
            found.append(
                Finding(
                    "note",
                    f"Stage {number}, {stage.task}, ended after {stage.rounds_done} of at most {stage.rounds} rounds: "
                    f"{what}.",
                )
            )
    return found


def _level(stage: StageResult) -> str:
    """The training loss that a stage ended with, beside the loss of knowing nothing: what ``near_chance`` compares."""
    if stage.loss_last is None or stage.chance_loss is None:
        return ""
    return f": last loss {stage.loss_last:.3f}, where a model that knows nothing has {stage.chance_loss:.3f}"


def _about_probe(results: Results) -> list[Finding]:
    found = []
    if results.downstream is not None:
        note = [Finding("note", _sentence(results.probe_note))] if results.probe_note else []
        return note + ([] if results.downstream.pooled is None else _about_classifier(results.downstream))
    if results.probe_note:
        found.append(Finding("note", _sentence(f"Probe: {results.probe_note}")))
    if results.probe is None:
        if not results.probe_note:
            found.append(Finding("note", "No probe was made: nothing here says how good the backbone is."))
        return found
    ours = results.probe.linear
    if results.baselines is None:
        found.append(Finding("warn", "No baselines were measured: the probe's figures cannot be judged."))
        return found
    for what, other in (("a random backbone", results.baselines.random.linear), ("the floor", results.baselines.floor)):
        found.append(_comparison(what, ours, other))
    for kind, score in (("linear", results.probe.linear), ("k-NN", results.probe.knn)):
        if score.note:
            found.append(Finding("note", _sentence(f"{kind} probe: {score.note}")))
    return found


def _about_origin(origin: Origin | None) -> list[Finding]:
    if origin is None or origin.doubt is None:
        return []
    return [Finding("bad", _sentence(f"Nobody vouches for the model: {origin.doubt}"))]


def _about_bias(audit: BiasAudit | None) -> list[Finding]:
    """Associations that were found, sites that are missing, and tests that could not be made."""
    if audit is None:
        return []
    found = []
    if audit.refused:
        found.append(Finding("warn", f"The bias audit is without {_sites(audit.refused)}."))
    found += [
        Finding("warn", f"The bias audit's test {test} was not made at {_sites(sites)}.")
        for test, sites in audit.omitted.items()
    ]
    if audit.found:
        where = "; ".join(f"{one.test} at {one.layer}" for one in audit.found)
        found.append(
            Finding(
                "warn",
                f"The bias audit found associations that neither chance nor untrained networks explain: {where}.",
            )
        )
    untestable = [one for one in audit.tests if one.verdict == NOT_TESTABLE]
    if untestable:
        where = "; ".join(f"{one.test} at {one.layer}" for one in untestable)
        found.append(Finding("note", f"The bias audit could not test: {where}."))
    return found


def _about_classifier(downstream: Downstream) -> list[Finding]:
    pooled, found = downstream.pooled, []
    assert pooled is not None
    interval = pooled.intervals.get("balanced_accuracy")
    classes = classes_tested(pooled)
    who = "The classifier is" if downstream.head == "global" else "The sites' own classifiers are"
    if interval is not None and interval.low <= 1 / classes:
        found.append(
            Finding(
                "warn",
                f"{who} not above chance beyond doubt: balanced accuracy {pooled.balanced_accuracy:.3f},"
                f" 95 % interval {interval.low:.3f} to {interval.high:.3f}, chance 1 in {classes}.",
            )
        )
    if pooled.note:
        found.append(Finding("note", _sentence(pooled.note)))
    found += [
        Finding("note", _sentence(f"{name}: {score.note}")) for name, score in downstream.sites.items() if score.note
    ]
    return found


def _comparison(what: str, ours: ProbeScore, other: ProbeScore) -> Finding:
    gain = ours.balanced_accuracy - other.balanced_accuracy
    noise = 2.0 * math.hypot(standard_error(ours), standard_error(other))
    figures = (
        f"linear probe {ours.balanced_accuracy:.3f} against {other.balanced_accuracy:.3f} balanced accuracy, "
        f"{ours.n_test:,} test images"
    )
    if gain <= 0.0:
        return Finding("warn", f"The backbone does not beat {what}: {figures}.")
    if gain < noise:
        return Finding("note", f"The backbone is above {what}, by less than two standard errors: {figures}.")
    return Finding("good", f"The backbone beats {what}: {figures}.")


def _sites(why: Mapping[str, str]) -> str:
    return ", ".join(f"{site} ({reason.rstrip('.')})" for site, reason in why.items())


def _rounds(numbers: list[int]) -> str:
    return f"round{'s' if len(set(numbers)) > 1 else ''} {ranges(numbers)}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _sentence(text: str) -> str:
    return text.rstrip(".") + "."
