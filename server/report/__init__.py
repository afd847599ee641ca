"""What a run says about itself to people: a self-contained page, its plots, and the model card."""

from server.report.card import write_model_card
from server.report.page import save_plots, write_report

__all__ = ["save_plots", "write_model_card", "write_report"]
