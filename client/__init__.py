"""The hospital: its images, its training, and what leaves it."""

import federation_configs as federation_configs  # switches Flower's telemetry off before flwr is imported
