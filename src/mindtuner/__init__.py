"""MindTuner: read what a new person sees from one hour of fMRI."""

__version__ = "0.1.0"
