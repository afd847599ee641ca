"""What a run says about itself to people: a self-contained page and the model card."""

from server.report.card import write_model_card
from server.report.page import write_report

__all__ = ["write_model_card", "write_report"]
