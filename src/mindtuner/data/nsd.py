"""Facts of NSD itself (Allen et al. 2022), which readers, simulator and imported models share."""

VOXELS = (15724, 14278, 15226, 13153, 13039, 17907, 12682, 14386)  # nsdgeneral, func1pt8mm, subjects 1 to 8


def voxel_count(subject: int, scale: float) -> int:
    """Voxels of a subject (1 to 8), times ``scale``; at least 50."""
    return max(50, round(VOXELS[subject - 1] * scale))
