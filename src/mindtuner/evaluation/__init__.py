"""Scores, statistics, controls and the report. Nothing in here knows how a model works inside."""
