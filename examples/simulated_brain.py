"""
# A simulated brain

Simulate a small study and look at one brain. The noise ceiling of a voxel is the share of its variance that the image
explains. It follows from repeats of the same image (Allen et al. 2022), and here the planted one is known, too.
"""

import matplotlib.pyplot as plt
import small_study
from safetensors.numpy import load_file

from mindtuner.evaluation.scores.brain import VoxelNoise

dataset = small_study.dataset()  # mindtuner.simulate(folder, "quick", noise=0.5)
subject = dataset.subject(1)
print(dataset)
print(subject)

# %%
# Betas are read when they are asked for. Each row is a trial, each column a voxel.

test = subject.test
betas = subject.betas(test.row)
ceiling = VoxelNoise.of_trials(betas, test.stimulus).ceiling(repeats=2)

# %%
# The simulator keeps its truth beside the data: here, where each voxel lies on a flat sheet, and its noise ceiling. The
# planted one is that of three repeats at full noise, so the scales differ, but the same voxels are good.

truth = load_file(small_study.FOLDER / "data" / "truth" / "subj01.safetensors")
x, y = truth["sheet"].T

figure, axes = plt.subplot_mosaic([["responses", "ceilings"], ["map", "map"]], figsize=(11, 6.5), layout="constrained")
shown = axes["responses"].imshow(betas[:60, :200], aspect="auto", cmap="RdBu_r", vmin=-3, vmax=3)
axes["responses"].set(title="responses", xlabel="voxel", ylabel="test trial")
figure.colorbar(shown, ax=axes["responses"], label="beta (z)")
axes["ceilings"].scatter(truth["noise_ceiling"], ceiling, s=4)
axes["ceilings"].set(title="noise ceilings", xlabel="planted", ylabel="estimated", xlim=(0, 1), ylim=(0, 1))
dots = axes["map"].scatter(x, y, c=ceiling, s=30)
axes["map"].set(title="map", aspect="equal", xticks=[], yticks=[])
figure.colorbar(dots, ax=axes["map"], label="noise ceiling")
for name, mask in subject.rois.items():
    if not mask.all():
        axes["map"].annotate(
            name, (x[mask].mean(), y[mask].mean()), ha="center", color="white", backgroundcolor="#0009", size=8
        )
plt.show()
