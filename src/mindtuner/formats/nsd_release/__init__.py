"""The NSD release: NSD as the authors of MindEye2 published it, betas z-scored, images at 224 x 224.

``fetch`` gets it from the hub.
"""

from mindtuner.formats.format import Format
from mindtuner.formats.nsd_release import check, read, write

FORMAT = Format(
    name="nsd_release",
    title="the NSD release",
    holds="betas_all_subj0N_fp32_renorm.hdf5 and what goes with it",
    sniff=read.sniff,
    load=read.load,
    write=write.write,
    check=check.check,
)
