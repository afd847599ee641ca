"""A curriculum: pretext tasks one after another on the same backbone."""
