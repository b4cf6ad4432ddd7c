"""Raw NSD: the files of NSD's own authors, int16 volumes a session. They are converted to the NSD release."""

from mindtuner.formats.format import Format
from mindtuner.formats.nsd_raw import check, convert, read, write

FORMAT = Format(
    name="nsd_raw",
    title="raw NSD",
    holds="nsddata, nsddata_betas and nsddata_stimuli",
    sniff=read.sniff,
    write=write.write,
    check=check.check,
    convert=convert.convert_nsd,
    way_in=lambda root: f"what mindtuner.formats.convert(root, out) or 'mindtuner convert nsd {root} OUT' writes",
)
