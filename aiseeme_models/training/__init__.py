"""The one training loop of all pretext tasks, and what of a task is shared."""
