"""BData, the files of bdpy and BrainDecoderToolbox2: a table of samples whose columns are voxels, labels and more."""

from mindtuner.formats.bdata import check, convert, read, write
from mindtuner.formats.bdata.file import is_bdata
from mindtuner.formats.format import Format

FORMAT = Format(
    name="bdata",
    title="bdpy's BData",
    holds="sub-01_....h5 with dataset and metadata, and stimuli",
    sniff=read.sniff,
    sniff_file=is_bdata,
    load=read.load,
    write=write.write,
    check=check.check,
    convert=convert.convert_bdata,
)
