"""GLMsingle's output: single-trial betas without a word of what each trial showed. It is read as part of a lab's folder."""

from mindtuner.formats.format import Format
from mindtuner.formats.glmsingle import check, read

FORMAT = Format(
    name="glmsingle",
    title="GLMsingle's output",
    holds="TYPED_FITHRF_GLMDENOISE_RR.hdf5 or .mat",
    sniff=read.sniff,
    sniff_file=read.sniff_file,
    check=check.check,
    way_in=read.way_in,
)
