"""How a stage's learning rate and batch size are found: what is tried, how long, and which is taken."""

from aiseeme_models.curriculum.tuning.asha import Asha, Job
from aiseeme_models.curriculum.tuning.options import Batch, Setting, TuneOptions

__all__ = ["Asha", "Batch", "Job", "Setting", "TuneOptions"]
