"""A simulated NSD: scenes, brains that look at them, noise, and the truth that was planted."""
