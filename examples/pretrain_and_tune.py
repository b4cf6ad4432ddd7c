"""
# Pretrain and tune

Pretrain a base on two subjects and tune it to a third, in a few lines. The picture shows how the losses fall.
"""

import json

import matplotlib.pyplot as plt
import small_study

import mindtuner

dataset = mindtuner.load(small_study.dataset().root)
features = mindtuner.embed(dataset)
base = mindtuner.pretrain(dataset.without(subject=1), features, "quick", out=small_study.FOLDER / "base")
one_hour = dataset.subject(1).sessions(1)
subject = mindtuner.tune(base, one_hour, features, out=small_study.FOLDER / "tuned")
print(base)
print(subject)

# %%
# A run folder keeps a line for each epoch in `log.jsonl`. Each loss is drawn relative to its first epoch.

figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for axis, run, stage in ((axes[0], "base", "pretrain"), (axes[1], "tuned", "mindtuner")):
    log = [json.loads(line) for line in open(small_study.FOLDER / run / "log.jsonl")]
    epochs = [entry for entry in log if entry["stage"] == stage]
    for name, first in epochs[0]["losses"].items():
        if first > 0:
            axis.plot([e["epoch"] for e in epochs], [e["losses"][name] / first for e in epochs], "o-", label=name)
    axis.set(title=f"{run}: {stage}", xlabel="epoch", ylabel="loss / first epoch", xticks=[e["epoch"] for e in epochs])
    axis.legend(fontsize=7)
plt.show()
