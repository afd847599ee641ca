"""Whether a probability means what it says, as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiseeme_models.downstream.calibration import BINS, Calibration
from server.report.drawing import PLAIN_COLOUR, SITE_COLOURS, WIDTH, Look

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def reliability_plot(calibration: Calibration, look: Look) -> Figure:
    """The reliability diagram (Guo et al. 2017, arXiv 1706.04599, fig. 1): how often each bin of confidence is right.

    A dot on the dotted line means what it says; below it the classifier is too sure. The bars are the bins' images.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    confidence = [one.confidence for one in calibration.reliability]
    accuracy = [one.accuracy for one in calibration.reliability]
    axes.plot((0, 1), (0, 1), color=look.ink, linewidth=1.0, linestyle=":", label="as sure as right")
    axes.vlines(confidence, accuracy, confidence, color=PLAIN_COLOUR, linewidth=3.0, alpha=0.45)
    axes.plot(confidence, accuracy, "o-", color=SITE_COLOURS[0], linewidth=1.2, markersize=5, label="test images")
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("share that is right")
    axes.grid()
    axes.legend(loc="upper left", fontsize=9.5)
    below.bar(confidence, [one.images for one in calibration.reliability], width=0.6 / BINS, color=SITE_COLOURS[0])
    below.set_xlim(0, 1)
    below.set_xlabel("confidence: the highest probability")
    below.set_ylabel("images")
    below.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    figure.align_ylabels()
    return figure
