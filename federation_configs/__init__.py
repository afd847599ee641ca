"""What a federation is: the schema of a whole config, the messages on the wire, and ready-made federations.

Importing this package switches Flower's telemetry and update check off, so every package that uses Flower imports it
first.
"""

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
