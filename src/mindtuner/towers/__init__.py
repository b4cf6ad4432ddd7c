"""Frozen encoders: images to tokens and latents, captions to embeddings."""
