"""Differential privacy of a patient: clipped gradients, secret noise, and what both cost."""
