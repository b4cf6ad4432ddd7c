"""Weights that others released and the full-size system reads: where they are, what they cost, and how to get them."""
