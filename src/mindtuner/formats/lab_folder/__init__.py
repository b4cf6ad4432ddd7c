"""A lab's folder: betas, a table of trials and stimuli of a lab's own scans, in plain files."""

from mindtuner.formats.format import Format
from mindtuner.formats.lab_folder import check, read, write

FORMAT = Format(
    name="lab_folder",
    title="a lab's folder",
    holds="trials.tsv, betas and stimuli",
    sniff=read.sniff,
    load=read.load,
    write=write.write,
    check=check.check,
)
