"""One site behind its gate and a coordinator with a key, for tests of what passes between them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Message, RecordDict

from aiseeme_models.training.shared_state import backbone_layout
from client.app import make_client_app
from client.gate import Gate
from client.ledger import Ledger
from client.schedule import ScheduleOptions
from client.site import Site
from client.site_config import PolicyOptions, SiteConfig
from federation_configs.records import Enclosure
from federation_configs.signatures import public_hex
from federation_configs.site_errors import SiteError
from federation_configs.wire import (
    AnalyseRequest,
    ComparedModel,
    DescribeRequest,
    EvaluateRequest,
    FitRequest,
    RangeRequest,
    Request,
    ScoreRequest,
    TeachRequest,
    TrainRequest,
)
from server.global_model import new_backbone, start_of_stage
from server.local_grid import LocalGrid
from server.request_signing import RequestSigner
from tests.conftest import InProcess, tiny_config

KEY, OTHER_KEY = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
FEDERATION = "skin-federation"
NOW = 1_800_000_000.0
TYPES = {
    "describe": "query.describe",
    "teach": "query.teach",
    "train": "train",
    "evaluate": "evaluate",
    "analyse": "query.analyse",
    "score": "query.score",
    "range": "query.range",
    "fit": "query.fit",
}
CONFIG = tiny_config(holdout={"test": 0.1, "validation": 0.5})


@dataclass
class Asked:
    """One site behind its gate, and a coordinator."""

    site: Site
    now: float = NOW
    signer: RequestSigner = field(init=False)
    model: Any = field(default_factory=lambda: start_of_stage(CONFIG, 0, None))

    def __post_init__(self) -> None:
        self.signer = RequestSigner(KEY, FEDERATION, clock=lambda: NOW)
        self.set_gate()

    def set_gate(self, policy: PolicyOptions | None = None, schedule: ScheduleOptions | None = None) -> None:
        """As a process that starts: everything is read from the disk."""
        config = SiteConfig(policy=policy or PolicyOptions(), schedule=schedule or ScheduleOptions())
        clock = lambda: self.now  # noqa: E731
        ledger = Ledger(self.site.state_folder / "ledger.jsonl", clock)
        key = public_hex(KEY.public_key())
        gate = Gate.of(config, ledger, site="alpha", federation=FEDERATION, signing_key=key)
        self.site = replace(self.site, gate=replace(gate, clock=clock))

    @property
    def compared(self) -> ComparedModel:
        layout = backbone_layout(new_backbone(CONFIG))
        return ComparedModel(backbone="tiny", norm="group", layout_sha256=layout.digest)

    def beside(self, kind: str) -> Enclosure | None:
        """What travels beside a request: the model, a backbone that is to be a teacher, or two that are compared."""
        backbone = self.model.vector[: self.model.layout.backbone_size]
        sent = {"describe": None, "teach": backbone, "analyse": np.concatenate([backbone, backbone + 0.1])}
        weights = sent.get(kind, self.model.vector)
        return None if weights is None else Enclosure(weights)

    def request(self, kind: str, round: int = 1) -> Request:
        place = {"round": round, "stage": 0, "round_in_stage": 0, "layout_sha256": self.model.layout.digest}
        if kind == "describe":
            return DescribeRequest(run="run-1", config=CONFIG)
        if kind == "analyse":
            return AnalyseRequest(run="run-1", config=CONFIG, models=(self.compared, self.compared))
        if kind == "range":
            return RangeRequest(run="run-1", config=CONFIG, **place, rates=(1e-4, 1.0), steps=20)
        if kind == "fit":
            return FitRequest(run="run-1", config=CONFIG, **place, sizes=(4, 8))
        kinds = {"teach": TeachRequest, "train": TrainRequest, "evaluate": EvaluateRequest, "score": ScoreRequest}
        return kinds[kind](run="run-1", config=CONFIG, **place)

    def signed(self, kind: str, signer: RequestSigner | None = None, **changes: Any) -> RecordDict:
        arguments: dict[str, Any] = {"site": None if kind == "describe" else "alpha", "valid_s": 600.0}
        arguments["beside"] = self.beside(kind)
        return (signer or self.signer).pack(kind, self.request(kind), **(arguments | changes))

    def answer(self, kind: str, content: RecordDict) -> Message:
        grid = LocalGrid(make_client_app(lambda context: self.site), 1)
        ids = grid.push_messages([Message(content, 2, TYPES[kind], ttl=600, group_id="1")])
        (reply,) = grid.pull_messages(ids)
        return reply

    def verdict(self, kind: str, content: RecordDict) -> SiteError | None:
        reply = self.answer(kind, content)
        if not reply.has_error():
            return None
        code = SiteError(reply.error.code)
        stamp = json.loads(content["body"]["json"]).get("stamp")
        named = f" ({stamp['nonce']})" if stamp else ""
        assert reply.error.reason == code.sentence + named, "nothing but the fixed sentence and what the request said"
        return code

    def entries(self) -> list[tuple[str, dict[str, Any]]]:
        ledger = Ledger(self.site.state_folder / "ledger.jsonl")
        assert ledger.verify() == []
        return [(entry.kind, entry.fields) for entry in ledger.entries()]


def with_body(content: RecordDict, **fields: str) -> RecordDict:
    changed = RecordDict({"body": ConfigRecord({**content.config_records["body"], **fields})})
    if "weights" in content:
        changed["weights"] = content["weights"]
    return changed


def gated(made: InProcess, policies: dict[str, PolicyOptions] | None = None) -> InProcess:
    key = public_hex(KEY.public_key())
    for number, site in enumerate(made.sites):
        config = SiteConfig(policy=(policies or {}).get(site.name, PolicyOptions()))
        ledger = Ledger.in_home(site.state_folder)
        gate = Gate.of(config, ledger, site=site.name, federation=FEDERATION, signing_key=key)
        made.sites[number] = replace(site, gate=gate)
    return made


def played_signed(made: InProcess) -> tuple[Any, np.ndarray]:
    loop = made.loop()
    loop.signer = RequestSigner(KEY, FEDERATION)
    return loop.play()
