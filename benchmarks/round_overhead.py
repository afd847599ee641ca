"""What a federated round costs beside the training: our deployment through its gateway, and stock Flower, in one run.

Ours: coordinator, gateway with client certificates, SuperLink and three sites as processes on loopback; wall time of a
round, less the slowest site's training, from ``metrics.jsonl``. Stock: Flower's SuperLink and three SuperNodes without
TLS, an app whose client imports what this project's imports and sends the same arrays back, so that all of its round
is overhead. In both the first round is left out. Prints one line of JSON. Run from the checkout:
``python -m benchmarks.round_overhead [--rounds 6] [--backbone resnet-tiny --backbone resnet18] [--no-stock]``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from aiseeme_models.backbones import build_backbone
from federation_configs.flower import quiet_environment
from scripts.loopback import ENVIRONMENT, Loopback, free_port, ran, until

SITES, SIZE, IMAGES = 3, 32, 32
_GATEWAY_LINE = re.compile(r'site="([^"]+)" .* in=(\d+) out=(\d+)')

CONFIG = """
name = "overhead"
[images]
preset = "dermoscopy"
size = {size}
[model]
backbone = "{backbone}"
norm = "group"
[[curriculum.stage]]
task = "rotation"
rounds = {rounds}
batch_size = 16
carry_optimizer = false
[federation]
min_sites = {sites}
{federation}
[holdout]
test = 0.0
validation = 0.0
"""

PROJECT = """
[project]
name = "stock"
version = "1.0.0"
dependencies = ["flwr"]
[tool.flwr.app]
publisher = "benchmark"
[tool.flwr.app.components]
serverapp = "stock.server:app"
clientapp = "stock.client:app"
[tool.flwr.app.config]
"""

CLIENT = """
import aiseeme_models.images.filling
import aiseeme_models.training.loop
import client.scanning
import client.workbench
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
app = ClientApp()
@app.train()
def train(message: Message, context: Context) -> Message:
    return Message(message.content, reply_to=message)
"""

SERVER = """
import json, time
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    state = torch.load({weights!r}, weights_only=True)
    while len(list(grid.get_node_ids())) < {sites}:
        time.sleep(0.2)
    seconds = []
    for round in range({rounds}):
        started = time.perf_counter()
        content = RecordDict({{"arrays": ArrayRecord(state)}})
        sent = [Message(content, node, "train", group_id=str(round)) for node in grid.get_node_ids()]
        replies = [reply for reply in grid.send_and_receive(sent, timeout=600) if reply.has_content()]
        assert len(replies) == {sites}
        arrays = [reply.content["arrays"].to_torch_state_dict() for reply in replies]
        state = {{name: sum(one[name] for one in arrays) / len(arrays) for name in arrays[0]}}
        seconds.append(time.perf_counter() - started)
    open({out!r}, "w").write(json.dumps(seconds))
"""


def ours(folder: Path, backbone: str, rounds: int, federation: str = "") -> dict[str, Any]:
    """Overhead seconds a round, and bytes through the gateway a site and round."""
    pictures = {f"site-{index}": _pictures(folder / "pictures" / str(index), index) for index in range(SITES)}
    text = CONFIG.format(size=SIZE, backbone=backbone, rounds=rounds, sites=SITES, federation=federation)
    with Loopback(folder, text, pictures, SIZE) as played:
        played.start()
        gateway = played.home / "logs" / "gateway.log"
        before = _passed(gateway)
        run = played.launch()
        row = played.wait_for_end(run, 900)
        if row["status"] != "done":
            raise SystemExit(f"the run failed: {row['reason']}")
        after = _passed(gateway)
        lines = [json.loads(line) for line in (played.home / "runs" / run / "metrics.jsonl").read_text().splitlines()]
    slowest: dict[int, float] = {}
    for line in lines:
        if "site" in line:
            slowest[line["round"]] = max(slowest.get(line["round"], 0.0), line["seconds"])
    seconds = [line["seconds"] - slowest[line["round"]] for line in lines if line.get("event") == "round"][1:]
    return {
        "overhead_s": _summary(seconds),
        "mb_in_per_site_round": round((after[0] - before[0]) / SITES / rounds / 1e6, 2),
        "mb_out_per_site_round": round((after[1] - before[1]) / SITES / rounds / 1e6, 2),
    }


def stock(folder: Path, backbone: str, rounds: int) -> dict[str, Any]:
    """Seconds a round of stock Flower with the same weights as one array per tensor."""
    app = folder / "app"
    (app / "stock").mkdir(parents=True)
    weights, out = folder / "weights.pt", folder / "seconds.json"
    torch.save(build_backbone(backbone, norm="group", in_channels=3).state_dict(), weights)
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "stock" / "__init__.py").touch()
    (app / "stock" / "client.py").write_text(CLIENT)
    (app / "stock" / "server.py").write_text(
        SERVER.format(weights=str(weights), sites=SITES, rounds=rounds, out=str(out))
    )
    binaries = Path(sys.executable).parent
    environment = quiet_environment(folder / "flower", ENVIRONMENT)
    environment["PATH"] = f"{binaries}{os.pathsep}{environment['PATH']}"
    port = free_port()
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *arguments: str) -> None:
        with (folder / f"{name}.log").open("wb") as log:
            command = [str(binaries / name.partition(".")[0]), *arguments]
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True))

    try:
        start("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port))
        until(lambda: _answers(port), "the stock SuperLink answers")
        for index in range(SITES):
            own = ("--host", "127.0.0.1", "--port", str(free_port()))
            start(f"flower-supernode.{index}", "--insecure", "--superlink", f"127.0.0.1:{port}", *own)
        (folder / "flower").mkdir(exist_ok=True)
        (folder / "flower" / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        ran(
            subprocess.run(
                [str(binaries / "flwr"), "run", str(app), "here"],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
        )
        until(lambda: out.exists() and out.read_text().endswith("]"), "stock Flower's run ends", 120 + 60 * rounds)
    finally:
        for process in started:
            os.killpg(process.pid, 15)
        for process in started:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
    return {"overhead_s": _summary(json.loads(out.read_text())[1:])}


def _answers(port: int) -> bool:
    import httpx

    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _pictures(folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for index in range(IMAGES):
        coarse = generator.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((48, 48), Image.Resampling.BICUBIC).save(folder / f"{index:03d}.png")
    return folder


def _passed(log: Path) -> tuple[int, int]:
    """Bytes that came from the sites and went to them; questions for work that found none are not logged."""
    found = _GATEWAY_LINE.findall(log.read_text(errors="replace"))
    return sum(int(each[1]) for each in found), sum(int(each[2]) for each in found)


def _summary(seconds: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(seconds), 3),
        "min": round(min(seconds), 3),
        "max": round(max(seconds), 3),
        "rounds": len(seconds),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--backbone", action="append")
    parser.add_argument("--transfer", default="float32", help="of ours: float32 or float16")
    parser.add_argument("--no-stock", action="store_true")
    given = parser.parse_args()
    found: dict[str, Any] = {"benchmark": "round_overhead", "sites": SITES, "cores": os.cpu_count()}
    federation = "" if given.transfer == "float32" else f'transfer = "{given.transfer}"'
    with tempfile.TemporaryDirectory() as temporary:
        for backbone in given.backbone or ["resnet-tiny", "resnet18"]:
            folder = Path(temporary) / backbone
            parameters = sum(p.numel() for p in build_backbone(backbone, norm="group", in_channels=3).parameters())
            measured: dict[str, Any] = {"model_mb": round(4 * parameters / 1e6, 1), "transfer": given.transfer}
            (folder / "ours").mkdir(parents=True)
            measured["ours"] = ours(folder / "ours", backbone, given.rounds, federation)
            if not given.no_stock:
                (folder / "stock").mkdir(parents=True)
                measured["stock"] = stock(folder / "stock", backbone, given.rounds)
                medians = measured["ours"]["overhead_s"]["median"], measured["stock"]["overhead_s"]["median"]
                measured["ratio"] = round(medians[0] / medians[1], 3)
            found[backbone] = measured
    print(json.dumps(found))


if __name__ == "__main__":
    main()
