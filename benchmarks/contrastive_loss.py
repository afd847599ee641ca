"""Our NT-Xent (normalise, matmul, cross-entropy) against ``monai.losses.ContrastiveLoss``: same value, other cost.

Forward and backward in turns in one process, CPU time. Prints one line of JSON with the ratio MONAI / ours per batch
size. Run: ``python benchmarks/contrastive_loss.py``.
"""

from __future__ import annotations

import json
import statistics
import time

import torch
from monai.losses import ContrastiveLoss

from aiseeme_models.pretext.simclr import nt_xent

WIDTH, TEMPERATURE, REPEATS = 128, 0.5, 5


def cpu_seconds(loss, first: torch.Tensor, second: torch.Tensor) -> float:
    """CPU time of one forward and backward pass."""
    first, second = first.clone().requires_grad_(), second.clone().requires_grad_()
    started = time.process_time()
    loss(first, second).backward()
    return time.process_time() - started


def main() -> None:
    """Measure and print."""
    monai = ContrastiveLoss(temperature=TEMPERATURE)
    draws = torch.Generator().manual_seed(0)
    ratios = {}
    for batch in (64, 256):
        first, second = torch.randn(2, batch, WIDTH, generator=draws)
        cpu_seconds(monai, first, second)
        cpu_seconds(lambda a, b: nt_xent(a, b, TEMPERATURE), first, second)
        pairs = [
            (cpu_seconds(monai, first, second), cpu_seconds(lambda a, b: nt_xent(a, b, TEMPERATURE), first, second))
            for _ in range(REPEATS)
        ]
        ratios[batch] = round(statistics.median(theirs / ours for theirs, ours in pairs), 1)
    print(json.dumps({"benchmark": "contrastive_loss", "monai_over_ours": ratios}))


if __name__ == "__main__":
    main()
