"""MOSAIC: subjects of eight datasets on one cortical surface. It is read as it is, and converted to a lab's folder."""

from mindtuner.formats.format import Format
from mindtuner.formats.mosaic import check, convert, read, write

FORMAT = Format(
    name="mosaic",
    title="MOSAIC",
    holds="sub-*_*.hdf5, *_stiminfo.tsv and stimuli",
    sniff=read.sniff,
    load=read.load,
    write=write.write,
    check=check.check,
    convert=convert.convert_mosaic,
)
