"""Other people's files, read into this project's: checkpoints of published models."""
