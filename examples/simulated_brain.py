"""
# A simulated brain

Simulate a small study and look at one brain. The noise ceiling of a voxel is the share of its variance that the image
explains. It follows from repeats of the same image (Allen et al. 2022), and here the planted one is known, too.
"""

import matplotlib.pyplot as plt
import small_study
from safetensors.numpy import load_file

from mindtuner.evaluation.scores.brain import VoxelNoise

dataset = small_study.dataset()  # mindtuner.simulate(folder, "quick")
subject = dataset.subject(1)
print(dataset)
print(subject)

# %%
# Betas are read when they are asked for. Each row is a trial, each column a voxel.

test = subject.test
betas = subject.betas(test.row)
ceiling = VoxelNoise.of_trials(betas, test.stimulus).ceiling(repeats=2)

# %%
# The simulator keeps its truth beside the data: here, where each voxel lies on a flat sheet, and its noise ceiling, which it
# states for the mean of three repeats.

truth = load_file(small_study.FOLDER / "data" / "truth" / "subj01.safetensors")
x, y = truth["sheet"].T

figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
shown = axes[0].imshow(betas[:60, :200], aspect="auto", cmap="RdBu_r", vmin=-3, vmax=3)
axes[0].set(title="responses", xlabel="voxel", ylabel="test trial")
figure.colorbar(shown, ax=axes[0], label="beta (z)")
dots = axes[1].scatter(x, y, c=ceiling, s=8)
figure.colorbar(dots, ax=axes[1], label="noise ceiling, 2 repeats")
axes[1].set(title="map", aspect="equal", xticks=[], yticks=[])
for name, mask in subject.rois.items():
    if not mask.all():
        axes[1].annotate(name, (x[mask].mean(), y[mask].mean()), ha="center", color="white", backgroundcolor="#0008", size=7)
axes[2].scatter(truth["noise_ceiling"], ceiling, s=4)
axes[2].set(
    title="planted and estimated", xlabel="planted, 3 repeats", ylabel="estimated, 2 repeats", xlim=(0, 1), ylim=(0, 1)
)
plt.show()
