"""
# Your own scans

Write a lab's folder from arrays, check it, and load it. The arrays here come from a simulated subject; yours come from your
GLM.
"""

import shutil

import matplotlib.pyplot as plt
import numpy as np
import small_study
from PIL import Image

import mindtuner
from mindtuner.evaluation.scores.brain import VoxelNoise

scanned = small_study.dataset().subject(1)
images = small_study.dataset().stimuli
study = small_study.FOLDER / "mystudy"
shutil.rmtree(study, ignore_errors=True)

# %%
# The images, each with its captions beside it. Those that this subject saw are enough.

(study / "stimuli").mkdir(parents=True)
for number in np.unique(scanned.trials.stimulus):
    pixels = np.moveaxis(images.images([number])[0] * 255, 0, -1).astype(np.uint8)
    Image.fromarray(pixels).save(study / "stimuli" / f"{number:04d}.png")
    (study / "stimuli" / f"{number:04d}.txt").write_text("\n".join(images.captions[number]), encoding="utf-8")

# %%
# Betas (trials, voxels), and a line for each trial.

(study / "sub-01").mkdir()
np.save(study / "sub-01" / "betas.npy", scanned.betas(scanned.trials.row))
np.savez(study / "sub-01" / "rois.npz", **scanned.rois)
lines = ["stimulus\tsession\tsplit"]
for image, session, test in zip(scanned.trials.stimulus, scanned.trials.session, scanned.trials.is_test, strict=True):
    lines.append(f"{image:04d}.png\t{session}\t{'test' if test else 'train'}")
(study / "sub-01" / "trials.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")

# %%
# The check reads everything and says what is wrong or assumed.

for found in mindtuner.check(study).items:
    print(found.severity, found.file, found.field, found.message, sep="  ")

# %%
# Then it is a dataset like any other. Noise ceilings come from the repeats of test images.

subject = mindtuner.load(study).subject(1)
test = subject.test
ceiling = VoxelNoise.of_trials(subject.betas(test.row), test.stimulus).ceiling(repeats=1)
names = [name for name, mask in subject.rois.items() if mask.any()]

figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
axes[0].hist(ceiling, bins=40)
axes[0].set(title="all voxels", xlabel="noise ceiling of a single trial", ylabel="voxels")
axes[1].boxplot([ceiling[subject.rois[name]] for name in names], showfliers=False)
axes[1].set_xticks(range(1, len(names) + 1), names, fontsize=8)
axes[1].set(title="by region", ylabel="noise ceiling of a single trial")
plt.show()
