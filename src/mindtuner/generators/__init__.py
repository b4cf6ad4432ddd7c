"""Image tokens to pictures: the compact generator that the package carries, and unCLIP with SDXL from local files."""
