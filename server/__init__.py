"""The coordinator: rounds, aggregation, checkpoints, registry, simulation, reports."""

import federation_configs as federation_configs  # switches Flower's telemetry off before flwr is imported
