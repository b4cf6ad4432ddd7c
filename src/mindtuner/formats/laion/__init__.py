"""LAION-fMRI: a 4-D NIfTI file of betas a session, and splits by name. Each split is converted to a lab's folder."""

from mindtuner.formats.format import Format
from mindtuner.formats.laion import check, convert, read, write

FORMAT = Format(
    name="laion",
    title="LAION-fMRI",
    holds="derivatives/glmsingle-tedana",
    sniff=read.sniff,
    write=write.write,
    check=check.check,
    convert=convert.convert_laion,
    way_in=lambda root: f"the lab folders that 'mindtuner convert laion {root} OUT --split NAME' writes, one for each split",
)
