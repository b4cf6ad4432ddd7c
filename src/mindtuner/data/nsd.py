"""Facts of NSD itself (Allen et al. 2022), which readers, simulator and imported models share."""

NAME = "NSD"  # in a dataset's card
VOXELS = (15724, 14278, 15226, 13153, 13039, 17907, 12682, 14386)  # nsdgeneral, func1pt8mm, subjects 1 to 8
SESSIONS = (40, 40, 32, 30, 40, 32, 40, 30)  # that each subject completed
SUBJECTS = len(VOXELS)
TRIALS = 750  # of a session
RUNS = 12  # of a session: 63 and 62 trials in turn
BETA_SCALE = 300  # betas are published as int16, percent signal change times this
VISUAL_ROIS = {"V1": (1, 2), "V2": (3, 4), "V3": (5, 6), "V4": (7,)}  # values in prf-visualrois: ventral, dorsal; hV4


def voxel_count(subject: int, scale: float) -> int:
    """Voxels of a subject (1 to 8), times ``scale``; at least 50."""
    return max(50, round(VOXELS[subject - 1] * scale))
