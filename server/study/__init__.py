"""The project's experiments: what is compared, played at equal compute over several seeds, in one table and one plot.

Importing this enters the kinds of study; nothing here is heavy before a study is played.
"""

from server.study import hyperparameters, order, tasks, volume
from server.study.arms import study_kinds

__all__ = ["hyperparameters", "order", "study_kinds", "tasks", "volume"]
