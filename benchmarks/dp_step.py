"""What clipping each patient's gradient costs, against the plain step and Opacus: ``python -m benchmarks.dp_step``.

A step is a pass forward, a pass back, the gradients clipped patient by patient and summed. Noise and optimiser,
which all have in common, are left out, but for "ours with noise": all that a private step does more than a plain
one. The model is ResNet-18 with GroupNorm and a linear classifier; every patient is one image. Turns of all methods
alternate; the ratio is the median of the pairs within a turn. Memory: each method in a process of its own, its
highest resident set (Linux) less what the process had before its first step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the commands have it

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aiseeme_models.backbones import build_backbone, initialise
from aiseeme_models.privacy.noise import SecretDraws
from aiseeme_models.privacy.options import PrivacyOptions
from aiseeme_models.privacy.patient_gradients import PatientGradients
from aiseeme_models.privacy.steps import PrivateSteps
from aiseeme_models.seeding import generator

_BOUND = 1.0


def _model(norm: str, device: str) -> nn.Module:
    backbone = build_backbone("resnet18", norm=norm, in_channels=3)  # type: ignore[arg-type]
    model = nn.Sequential(backbone, nn.Linear(backbone.feature_dim, 8))
    initialise(model, generator(1, "weights"))
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _plain(model: nn.Module, images: Tensor, targets: Tensor) -> Callable[[], None]:
    def step() -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), targets).backward()  # type: ignore[no-untyped-call]

    return step


def _ours(model: nn.Module, images: Tensor, targets: Tensor) -> Callable[[], None]:
    patients = PatientGradients(model)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        patients.add_clipped(
            lambda: F.cross_entropy(model(images), targets), len(images), clipping="flat", bound=_BOUND
        )

    return step


def _with_noise(model: nn.Module, images: Tensor, targets: Tensor) -> Callable[[], None]:
    batch = len(images)
    options = PrivacyOptions(noise_multiplier=1.0, max_grad_norm=_BOUND, physical_batch=batch)
    private = PrivateSteps([str(patient) for patient in range(batch)], batch, batch, options, SecretDraws())
    task = SimpleNamespace(shared=model)

    def step() -> None:
        private.fill(
            task,  # type: ignore[arg-type]
            torch.arange(batch),
            lambda _: (images, targets),
            lambda views: F.cross_entropy(model(views[0]), views[1]),
        )

    return step


def _opacus(mode: str) -> Callable[[nn.Module, Tensor, Tensor], Callable[[], None]]:
    def make(model: nn.Module, images: Tensor, targets: Tensor) -> Callable[[], None]:
        from opacus import GradSampleModule

        wrapped = GradSampleModule(model) if mode == "hooks" else _expanded(model)

        def step() -> None:
            wrapped.zero_grad(set_to_none=True)
            F.cross_entropy(wrapped(images), targets).backward()  # type: ignore[no-untyped-call]
            weights = [weight for weight in wrapped.parameters() if weight.requires_grad]
            norms = torch.stack([weight.grad_sample.flatten(1).norm(dim=1) for weight in weights]).norm(dim=0)
            factor = (_BOUND / (norms + 1e-6)).clamp(max=1.0)
            for weight in weights:
                weight.grad = torch.einsum("i,i...", factor, weight.grad_sample)
                weight.grad_sample = None

        return step

    return make


def _expanded(model: nn.Module) -> nn.Module:
    from opacus.grad_sample.gsm_exp_weights import GradSampleModuleExpandedWeights

    return GradSampleModuleExpandedWeights(model)


_METHODS: dict[str, Callable[[nn.Module, Tensor, Tensor], Callable[[], None]]] = {
    "plain": _plain,
    "ours": _ours,
    "ours with noise": _with_noise,
    "opacus hooks": _opacus("hooks"),
    "opacus expanded weights": _opacus("expanded"),
}


def _prepare(method: str, arguments: argparse.Namespace) -> Callable[[], None]:
    rows = generator(2, "images")
    images = torch.randn((arguments.batch, 3, arguments.size, arguments.size), generator=rows)
    images = images.to(arguments.device, memory_format=torch.channels_last)
    targets = torch.randint(0, 8, (arguments.batch,), generator=rows).to(arguments.device)
    norm = arguments.norm if not method.startswith("opacus") else "group"  # Opacus knows no standardised weights
    return _METHODS[method](_model(norm, arguments.device), images, targets)


def _seconds(step: Callable[[], None], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _peak(method: str, arguments: argparse.Namespace) -> int:
    """Highest memory of a few steps, in bytes, above what lay there before."""
    step = _prepare(method, arguments)
    if arguments.device != "cpu":
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the imports
    before = _kilobytes("VmRSS")
    for _ in range(3):
        step()
    return (_kilobytes("VmHWM") - before) * 1024


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--norm", default="group", choices=("group", "group-ws"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--methods", default=",".join(_METHODS))
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        print(_peak(arguments.peak_of, arguments))
        return
    methods = arguments.methods.split(",")
    steps = {method: _prepare(method, arguments) for method in methods}
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {method: [] for method in methods}
    for _ in range(arguments.turns):
        for method in methods:
            times[method].append(_seconds(steps[method], arguments.device))
    peaks = {}
    for method in methods:
        command = [sys.executable, "-m", "benchmarks.dp_step", *sys.argv[1:], "--peak-of", method]
        peaks[method] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    ratios = {
        method: statistics.median(one / plain for one, plain in zip(times[method], times["plain"], strict=True))
        for method in methods
    }
    print(
        json.dumps(
            {
                "model": f"resnet18 {arguments.norm} {arguments.size} px batch {arguments.batch} {arguments.device}",
                "threads": torch.get_num_threads(),
                "plain_s": round(statistics.median(times["plain"]), 3),
                "ratio": round(ratios["ours"], 2),
                "ratios": {method: round(ratio, 2) for method, ratio in ratios.items()},
                "least_and_most": [
                    round(bound([a / b for a, b in zip(times["ours"], times["plain"], strict=True)]), 2)
                    for bound in (min, max)
                ],
                "peak_mb": {method: round(peak / 1e6) for method, peak in peaks.items()},
                "memory_ratio": round(peaks["ours"] / peaks["plain"], 2),
            }
        )
    )


if __name__ == "__main__":
    main()
