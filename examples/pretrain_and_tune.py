"""
# Pretrain and tune

Pretrain a base on two subjects and tune it to a third, in a few lines. The picture shows how the losses fall.
"""

import json

import matplotlib.pyplot as plt
import small_study

import mindtuner

dataset = small_study.dataset()  # mindtuner.load("data/nsd")
features = mindtuner.embed(dataset)
base = mindtuner.pretrain(dataset.without(subject=1), features, small_study.CONFIG, out=small_study.FOLDER / "base")
one_hour = dataset.subject(1).sessions(1)
subject = mindtuner.tune(base, one_hour, features, out=small_study.FOLDER / "tuned")
print(base)
print(subject)

# %%
# A run folder keeps a line for each epoch in `log.jsonl`. On the left, the losses of pretraining, each relative to its first
# epoch. On the right, the contrastive loss of tuning. It falls for shuffled brains too, by overfitting: only test images tell
# the methods apart.


def log(run):
    return [json.loads(line) for line in open(small_study.FOLDER / run / "log.jsonl")]


figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
epochs = [entry for entry in log("base") if entry["stage"] == "pretrain"]
for loss, first in epochs[0]["losses"].items():
    if first > 0:
        left.plot([entry["epoch"] for entry in epochs], [entry["losses"][loss] / first for entry in epochs], label=loss)
left.set(title="pretrain", xlabel="epoch", ylabel="loss / that of the first epoch", ylim=(0, None))
for method in subject.networks:
    epochs = [entry for entry in log("tuned") if entry["stage"] == method]
    right.plot([entry["epoch"] for entry in epochs], [entry["losses"]["clip"] for entry in epochs], "o-", label=method)
right.set(
    title="tune", xlabel="epoch", ylabel="contrastive loss", xticks=[entry["epoch"] for entry in epochs], ylim=(0, None)
)
left.legend(fontsize=8)
right.legend(fontsize=8)
plt.show()
