"""The scores themselves: arrays in, one number an image out. Nothing here knows of methods, runs or files."""
