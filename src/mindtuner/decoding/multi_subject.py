"""Several subjects' fingerprints on one base: trials of all of them in one pass through what they share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from mindtuner.model import BrainNetwork, BrainOutputs
from mindtuner.model.lora import LoRALinear
from mindtuner.training.fingerprint import Fingerprint, refuse_other_base, share_weights

TrialSlices = dict[str, slice]  # where in a joined batch the trials of each subject stand


class MultiSubjectNetwork:
    """One base and many fingerprints; weights of the base are held once.

    Each frozen Linear sees the joined batch once; ridges, low-rank updates, skip paths and new blocks see the rows of
    their own subject. Raises UserError where a fingerprint does not fit the base.
    """

    def __init__(self, base: BrainNetwork, fingerprints: Mapping[str, Fingerprint]):
        refuse_other_base(base, fingerprints.values())
        self.subjects = {name: fingerprint.on(base) for name, fingerprint in fingerprints.items()}
        self.rows: TrialSlices = {}
        self._shared = share_weights(base)
        for name, module in base.named_modules():
            own = {subject: network.get_submodule(name) for subject, network in self.subjects.items()}
            updates = {subject: part for subject, part in own.items() if isinstance(part, LoRALinear)}
            if updates:
                self._shared.set_submodule(name, SharedLinear(module, updates, self.rows))
        self._shared.new_blocks.append(
            OwnBlocks({subject: network.new_blocks for subject, network in self.subjects.items()}, self.rows)
        )
        self._shared.eval()

    def __call__(self, voxels: Mapping[str, torch.Tensor]) -> BrainOutputs:
        """Betas (n, V) by subject -> outputs of all trials, joined in the order of ``voxels``."""
        self.rows.clear()
        end = 0
        for subject, betas in voxels.items():
            self.rows[subject] = slice(end, end + len(betas))
            end += len(betas)
        networks = {subject: self.subjects[subject] for subject in voxels}
        x = torch.cat([network.embed(voxels[subject], network.fingerprint_subject) for subject, network in networks.items()])
        return self._shared.decode_hidden(x, self._skips(networks, voxels, x))

    def _skips(
        self, networks: dict[str, BrainNetwork], voxels: Mapping[str, torch.Tensor], x: torch.Tensor
    ) -> list[torch.Tensor]:
        """Skip-LoRA's outputs at each entry point, zero for subjects that have none there."""
        joined = []
        for entry in range(max(len(network.skips) for network in networks.values())):
            own = {
                subject: network.skips[entry](voxels[subject])
                for subject, network in networks.items()
                if entry < len(network.skips)
            }
            width = next(iter(own.values())).shape[1]
            joined.append(torch.cat([own.get(subject, x.new_zeros(len(betas), width)) for subject, betas in voxels.items()]))
        return joined


class SharedLinear(nn.Module):
    """A base's Linear over the joined batch (n, ..., in), and each subject's low-rank update on its own rows."""

    def __init__(self, linear: nn.Linear, updates: dict[str, LoRALinear], rows: TrialSlices):
        super().__init__()
        self.linear, self.updates, self.rows = linear, updates, rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs of the joined batch, (n, ..., in) -> (n, ..., out)."""
        y = self.linear(x)
        for subject, part in self.rows.items():
            if subject in self.updates:
                lora = self.updates[subject]
                y[part] += lora.scale * F.linear(F.linear(x[part], lora.A), lora.B)
        return y


class OwnBlocks(nn.Module):
    """Each subject's new blocks on its own rows; (n, h) -> (n, h)."""

    def __init__(self, blocks: dict[str, nn.ModuleList], rows: TrialSlices):
        super().__init__()
        self.blocks, self.rows = blocks, rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden features of the joined batch, (n, h) -> (n, h), in the same order of rows."""
        parts = []
        for subject, rows in self.rows.items():
            part = x[rows]
            for block in self.blocks[subject]:
                part = block(part)
            parts.append(part)
        return torch.cat(parts)
