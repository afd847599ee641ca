"""The report says in words what went wrong, trusts no text, loads nothing, and shows the figures that were measured."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from aiseeme_models.downstream.metrics import ProbeScore
from aiseeme_models.errors import InputError
from server.report import write_model_card, write_report
from server.report.card import escape_markdown
from server.report.findings import ranges, standard_error

EVIL = "<script>alert('x')</script>\u202e https://evil.example/a [b](http://evil.example) $\\frac{1}{2}$ |"


def score(recalls: list[float], k: int | None = None) -> dict[str, Any]:
    per_class = {
        name: {"recall": recall, "auc": 0.7, "n_test": 100, "n_train": 300}
        for name, recall in zip(["mel", "nv"], recalls, strict=True)
    }
    return {
        "balanced_accuracy": sum(recalls) / 2,
        "macro_auc": 0.7,
        "per_class": per_class,
        "n_train": 600,
        "n_test": 200,
        "k": k,
        "note": None,
    }


def site(name: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "images": 500, "rejected": {}, "rounds_answered": 4, "missed": [], "classes": None} | changes


def stage(task: str, **changes: Any) -> dict[str, Any]:
    return {
        "task": task,
        "rounds_done": 2,
        "rounds": 2,
        "stopped_by": "rounds",
        "heldout_loss": 2.5,
        "chance_loss": 4.8,
        "near_chance": False,
        "loss_first": 4.0,
        "loss_last": 2.4,
    } | changes


GOOD: dict[str, Any] = {
    "status": "done",
    "reason": "",
    "name": "skin-small",
    "run": "r1",
    "version": "0.1.0",
    "seed": 7,
    "config_sha256": "a" * 64,
    "backbone_sha256": "b" * 64,
    "rounds_done": 4,
    "rounds_total": 4,
    "stages": [stage("relative-location"), stage("simclr")],
    "sites": [site("alpha"), site("beta")],
    "probe": {"linear": score([0.9, 0.8]), "knn": score([0.7, 0.8], k=20)},
    "baselines": {"random": {"linear": score([0.6, 0.5]), "knn": score([0.5, 0.5], k=20)}, "floor": score([0.4, 0.6])},
    "probe_note": None,
    "seconds": {"total": 3725.0, "training": 59.5, "overhead": 61.0},
    "phantom": False,
}


def lines(sites: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for number in range(1, 5):
        which = {"round": number, "stage": (number - 1) // 2, "task": "t"}
        for name in sites:
            found.append(
                which | {"site": name, "images": 500, "loss": 4.0 / number, "seconds": 2.0, "images_per_s": 250.0}
            )
        found.append(which | {"event": "round", "loss": 4.0 / number, "heldout_loss": None, "seconds": 5.0})
    return found


@pytest.fixture
def write(tmp_path: Path):  # type: ignore[no-untyped-def]
    def make(**changes: Any) -> tuple[str, str]:
        results = copy.deepcopy(GOOD) | changes
        (tmp_path / "results.json").write_text(json.dumps(results))
        text = "\n".join(json.dumps(line) for line in lines([entry["name"] for entry in results["sites"]]))
        (tmp_path / "metrics.jsonl").write_text(text + "\n")
        (tmp_path / "config.toml").write_text('name = "x" # </pre><script>alert(1)</script>\n')
        return write_report(tmp_path).read_text(), write_model_card(tmp_path).read_text()

    return make


class Elements(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def state(page: str) -> tuple[str, str]:
    found = re.search(r'<div class="state (\w+)">(.*?)</div>', page)
    assert found
    return found[1], found[2]


def test_a_run_with_all_sites_is_green_and_one_without_is_not(write) -> None:  # type: ignore[no-untyped-def]
    assert state(write()[0]) == ("good", "done, all 2 sites in every round")
    missed = [{"round": n, "code": "timeout", "reason": "no answer before the deadline"} for n in (1, 2, 4)]
    page, card = write(sites=[site("alpha"), site("beta", rounds_answered=1, missed=missed)])
    assert state(page) == ("warn", "done, 1 of 2 sites in every round")
    said = "beta contributed to 1 of 4 rounds. Missed rounds 1-2, 4: no answer before the deadline (timeout)."
    assert said in page and said in card
    assert state(write(sites=[site("alpha", rounds_answered=3)])[0])[0] == "warn"  # even where no reason was noted


def test_a_failed_run_is_red_and_says_why(write) -> None:  # type: ignore[no-untyped-def]
    page, _ = write(status="failed", reason="the quorum was lost in round 3", rounds_done=2, probe=None, baselines=None)
    assert state(page) == ("bad", "failed after round 2 of 4")
    assert "The run failed: the quorum was lost in round 3." in page
    assert "No probe was made" in page


def test_rejected_images_are_counted_with_their_reasons(write) -> None:  # type: ignore[no-untyped-def]
    page, card = write(sites=[site("alpha", rejected={"truncated": "<5", "too-small": 1200}), site("beta")])
    said = "Files and images left out: alpha (1,200 too-small, {}5 truncated)."
    assert said.format("&lt;") in page and said.format("\\<") in card
    assert "over 1,200" in page and "over 1,200" in card
    assert "left out:" not in write()[0]


def test_a_task_that_stayed_near_chance_is_said_so(write) -> None:  # type: ignore[no-untyped-def]
    rotation = stage("rotation", near_chance=True, loss_last=1.3101, chance_loss=1.38629)
    page, card = write(stages=[rotation, stage("simclr", stopped_by="plateau", rounds=9)])
    said = "Stage 1, rotation, stayed near chance: last loss 1.310, where a model that knows nothing has 1.386."
    assert said in page and said in card
    assert "Stage 2, simclr, ended after 2 of at most 9 rounds" in page


def test_what_was_found_for_a_stage_is_told_with_its_cost(write) -> None:  # type: ignore[no-untyped-def]
    tried = [
        {"lr": 0.003, "batch_size": 32, "rounds": 3, "error": 1.25},
        {"lr": 0.03, "batch_size": 32, "rounds": 1, "out": "a site ran out of memory"},
    ]
    cost = {"steps": 80, "images": 2560, "share": 0.184, "seconds": 12.0}
    found = {"lr": 0.003, "batch_size": 32, "method": "asha", "judged_by": "heldout", "tried": tried, **cost}
    page, card = write(stages=[stage("simclr", found=found)])
    sentence = "lr 0.003 and batch 32 were found of 2 settings by successive halving, which took 18 % of the images"
    assert sentence in page and sentence in card
    assert "1.250" in page and "a site ran out of memory" in page


def test_the_probe_is_judged_against_its_baselines(write) -> None:  # type: ignore[no-untyped-def]
    assert "The backbone beats a random backbone: linear probe 0.850 against 0.550" in write()[0]
    same = {"random": {"linear": score([0.9, 0.8]), "knn": score([0.5, 0.5], k=20)}, "floor": score([0.88, 0.8])}
    page, _ = write(baselines=same)
    assert "The backbone does not beat a random backbone" in page
    assert "The backbone is above the floor, by less than two standard errors" in page
    assert "cannot be judged" in write(baselines=None)[0]


def test_every_figure_of_the_probe_is_in_the_page_with_its_cases(write) -> None:  # type: ignore[no-untyped-def]
    page, card = write()
    for text in (Elements(page).text, card):
        assert {"0.850", "0.750", "0.550", "0.500"} <= set(re.findall(r"\d\.\d{3}", text))
        assert "k = 20" in text and "200" in text and "600" in text
    assert "1 h 2 min: 59.5 s training, 1 min 1 s overhead" in page
    assert "Chance is 1 in 2" in page and "Chance is 1 in 2" in card


CARD = (
    "Model details",
    "Intended use",
    "Factors",
    "Metrics",
    "Evaluation data",
    "Training data",
    "Quantitative analyses",
    "Ethical considerations",
    "Caveats and recommendations",
)
"""The sections of Mitchell et al. 2019, figure 1."""


@pytest.mark.parametrize("changes", [{}, {"probe": None, "baselines": None}, {"status": "failed", "probe": None}])
def test_the_card_has_the_sections_of_mitchell_et_al_in_their_order(write, changes) -> None:  # type: ignore[no-untyped-def]
    assert tuple(re.findall(r"^## (.+)$", write(**changes)[1], re.MULTILINE)) == CARD


def test_what_training_cost_is_told(write) -> None:  # type: ignore[no-untyped-def]
    page, _ = write(weights_bytes=22_345_678, sites=[site("alpha", images_per_s=251.4), site("beta")])
    assert "22.3 MB" in page and '<td class="n">251</td>' in page
    assert " MB" not in write()[0]


@pytest.mark.parametrize(
    ("mode", "backbone"), [("finetune", "trained by the sites together"), ("linear", "left as it came")]
)
def test_heads_that_stay_at_their_sites_are_no_classifier_of_the_run(write, mode, backbone) -> None:  # type: ignore[no-untyped-def]
    pooled = score([0.6, 0.4]) | {"intervals": {"balanced_accuracy": {"low": 0.4, "high": 0.6}}}
    task = {"mode": mode, "head": "personal", "classes": ["mel", "nv"], "labels": 1.0, "pooled": pooled}
    page, card = write(downstream=task, probe=None, baselines=None)
    for text in (" ".join(Elements(page).text.split()), card):
        assert backbone in text and "Every site has a linear head of its own, which stays there" in text
        assert "very figure is of a site's own head on its own test patients" in text
        assert "The sites' own classifiers are not above chance" in text
    assert "What the classifier does" not in page and "the model of this run is the backbone" in page
    assert "- Image backbone" in card and "It gives features, no probabilities." in card
    for wrong in ("- Classifier", "no temperature was fitted", "pretrained without labels", "teach a classifier"):
        assert wrong not in card
    page, card = write(downstream=task | {"head": "global"}, probe=None, baselines=None)
    assert "2 classes, trained by the sites together" in page and "- Classifier (mel, nv)" in card
    assert "own head" not in page + card and "The classifier is not above chance" in card


def test_phantoms_are_called_phantoms(write) -> None:  # type: ignore[no-untyped-def]
    page, card = write(phantom=True)
    assert "The images are phantoms" in page and "phantom images" in card
    assert "phantom" not in write()[0]


def test_no_text_from_a_site_becomes_markup_and_nothing_is_loaded(write) -> None:  # type: ignore[no-untyped-def]
    clean, _ = write()
    missed = [{"round": 2, "code": EVIL, "reason": EVIL}]
    evil = site(EVIL, rejected={EVIL: 2}, classes={EVIL: 5}, missed=missed, rounds_answered=3)
    page, card = write(sites=[evil, site("beta")], name=EVIL, run=EVIL, reason=EVIL, probe_note=EVIL, version=EVIL)
    for text in (clean, page):
        assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:\"" in text
        elements = Elements(text)
        assert not {"script", "link", "img", "iframe", "a", "base", "object"} & {tag for tag, _ in elements.tags}
        for tag, attributes in elements.tags:
            assert not any(name.startswith("on") or name == "src" for name in attributes), tag
            assert (attributes.get("href") or "#").startswith("#")
            assert not re.search(r"url\((?!#)", attributes.get("style") or "")
    assert "//" not in re.sub(r"config\.toml.*</pre>", "", clean, flags=re.DOTALL)
    assert "alert('x')" in Elements(page).text  # shown, as text
    assert "\u202e" not in page and "\u202e" not in card
    assert "alert" in card and not re.search(r"(?<!\\)(<|\[|\]\(|://)", card)


def test_every_id_in_the_page_is_unique(write) -> None:  # type: ignore[no-untyped-def]
    elements = Elements(write()[0])
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 2
    targets = {(attributes.get("href") or "")[1:] for _, attributes in elements.tags if "href" in attributes}
    assert targets <= set(ids)
    assert sum(tag == "svg" for tag, _ in elements.tags) == 5  # two scores, two stages, the sites


def test_the_same_run_gives_the_same_bytes(write) -> None:  # type: ignore[no-untyped-def]
    assert write() == write()


def test_lines_that_a_crash_cut_are_counted_and_a_repeated_round_counts_once(tmp_path: Path, write) -> None:  # type: ignore[no-untyped-def]
    before, _ = write()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(lines(["alpha"])[0]) + "\n" + '{"round": 5, "sta')
    page = write_report(tmp_path).read_text()
    assert "metrics.jsonl: 1 line not readable" in page
    assert page.count("<svg") == before.count("<svg")
    (tmp_path / "metrics.jsonl").unlink()
    assert before.count("<svg") - write_report(tmp_path).read_text().count("<svg") == 3  # the curves and the sites


def test_many_sites_and_a_single_round_are_drawn(write) -> None:  # type: ignore[no-untyped-def]
    page, _ = write(sites=[site(f"hospital-{number}") for number in range(40)])
    assert page.count("hospital-39") == 2 and page.count("<svg") == 5


def test_results_that_are_missing_or_broken_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no results.json"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(GOOD | {"rounds_done": "four"}))
    with pytest.raises(InputError, match="rounds_done"):
        write_model_card(tmp_path)


def test_rounds_are_told_as_ranges() -> None:
    assert ranges([5, 3, 4, 9, 9]) == "3-5, 9"
    assert ranges([]) == "" and ranges([7]) == "7"


def test_the_standard_error_is_that_of_repeated_draws() -> None:
    import numpy as np

    entry = score([0.9, 0.6])
    entry["per_class"]["nv"]["n_test"] = 30
    rng = np.random.default_rng(0)
    draws = (rng.binomial(100, 0.9, 20_000) / 100 + rng.binomial(30, 0.6, 20_000) / 30) / 2
    assert standard_error(ProbeScore.model_validate(entry)) == pytest.approx(draws.std(), rel=0.03)


@pytest.mark.parametrize(
    "text", ["# a", "- a", "a | b", "<b>", "[a](b)", "www.x.org", "http://x", "*a*", "`a`", "a\nb"]
)
def test_no_markdown_starts_in_a_value(text: str) -> None:
    escaped = escape_markdown(text)
    assert "\n" not in escaped
    assert not re.search(r"(?<!\\)[#|<>\[\]*`]|^[-+]|(?<!\\)://|www\.", escaped)
    assert re.sub(r"\\(.)", r"\1", escaped) == " ".join(text.split())
