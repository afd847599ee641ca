"""The hospital's side of a federation."""
