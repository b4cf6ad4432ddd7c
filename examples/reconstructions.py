"""
# Reconstructions

Decode the brain's responses to test images into pictures and captions. The rows show what was seen and the three stages of
the reconstruction.
"""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import small_study

subject = small_study.subject()
one_hour = small_study.dataset().subject(1).sessions(1).averaged()  # repeats of an image, averaged
decoder = subject.decoder()
print(decoder)

# %%
# Six test images, evenly spaced.

some = np.linspace(0, len(one_hour.test) - 1, 6).astype(int)
voxels = one_hour.betas(one_hour.test.row[some])
captions = decoder.describe(voxels)
stages = decoder.reconstruct(voxels, stages=True)
seen = small_study.dataset().stimuli.images(one_hour.test.stimulus[some])

# %%
rows = {"seen": (seen * 255).astype(np.uint8), **stages}
figure, axes = plt.subplots(len(rows), len(some), figsize=(11, 8), layout="constrained")
for axis_row, (name, pictures) in zip(axes, rows.items(), strict=True):
    for axis, picture in zip(axis_row, pictures, strict=True):
        axis.imshow(np.moveaxis(picture, 0, -1))
        axis.set(xticks=[], yticks=[])
    axis_row[0].set_ylabel(name)
for axis, caption in zip(axes[-1], captions, strict=True):
    axis.set_xlabel(textwrap.fill(caption, 28), fontsize=7)
plt.show()
