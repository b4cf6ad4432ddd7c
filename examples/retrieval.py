"""
# Retrieval

Which of the test images did the subject see? Each row compares one brain pattern with all candidates. A right answer is the
largest value of its row, on the diagonal.
"""

import matplotlib.pyplot as plt
import numpy as np
import small_study

one_hour = small_study.dataset().subject(1).sessions(1).averaged()
test = one_hour.test
found = small_study.subject().decoder().retrieve(one_hour.betas(test.row), test.stimulus)
right = found.best == np.arange(len(test))
print(found)
print(f"{right.mean():.2f} of {len(test)} images found first, chance {1 / len(test):.2f}")

# %%
# How often is the right image among the first k? Chance is k over the number of candidates.

rank = (found.order == np.arange(len(test))[:, None]).argmax(1)
k = np.arange(1, len(test) + 1)

figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
shown = axes[0].imshow(found.similarity, cmap="viridis")
axes[0].set(title="similarity", xlabel="candidate", ylabel="brain pattern")
figure.colorbar(shown, ax=axes[0], label="cosine")
axes[1].plot(k, [(rank < first).mean() for first in k], label="decoded")
axes[1].plot(k, k / len(test), ":", color="grey", label="chance")
axes[1].set(title="found among the first k", xlabel="k", ylabel="share of images", ylim=(0, 1))
axes[1].legend()
plt.show()
