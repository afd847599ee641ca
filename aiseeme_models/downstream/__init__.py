"""Downstream evaluation of a backbone: features, probes, their figures and the floor under them.

Import from the modules themselves: `metrics` is light, `features` and `floor` bring PyTorch.
"""
