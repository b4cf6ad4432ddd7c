"""
# Compare methods

Score a tuned subject and compare two methods on the same test images. Differences are paired by image, with 95 % intervals.
An interval that holds 0 shows no difference.
"""

import matplotlib.pyplot as plt
import small_study

results = small_study.results()  # mindtuner.evaluate(subject, dataset)
print(results.to_frame()["retrieval"].round(2))

# %%
comparison = results.compare(method="mindtuner", other_method="ridge_only")
control = results.compare(method="mindtuner", other_method="shuffled_brain")
print(comparison)

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
for axis, (title, compared) in zip(
    axes, {"minus the ridge alone": comparison, "minus shuffled brains": control}.items(), strict=True
):
    table = compared.to_frame()
    names = [f"{part}: {score}" for part, score in table.index]
    for at, row in enumerate(table.itertuples()):
        shown = row.low > 0 or row.high < 0
        axis.plot([row.low, row.high], [at, at], color="tab:red" if shown else "tab:blue")
        axis.plot(row.difference, at, "o", markersize=4, color="tab:red" if shown else "tab:blue")
    axis.axvline(0, color="grey", linestyle=":")
    axis.set(title=title, xlabel="difference")
axes[0].set_yticks(range(len(names)), names, fontsize=8)
axes[0].invert_yaxis()
plt.show()
