"""Voxels to tokens and words: the decoder of one subject, or of several on one base."""
