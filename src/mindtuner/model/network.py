"""The whole decoder: voxels of one subject -> tokens, latents and features, with at most one fingerprint."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from mindtuner.config import FingerprintConfig, ModelConfig
from mindtuner.model.backbone import (
    AdaptiveProjector,
    Centre,
    Confidence,
    ExpectedHidden,
    ResidualBlock,
    RetrievalProjector,
    Sureness,
    TokenHead,
)
from mindtuner.model.lora import SkipLoRA, add_lora
from mindtuner.model.low_level import LowLevel
from mindtuner.model.prior import DiffusionPrior


@dataclass
class BrainOutputs:
    """What the network says about n trials (or averages of trials).

    Attributes
    ----------
    backbone_tokens : tensor (n, T, D)
        B, the prior's condition.
    retrieval_tokens : tensor (n, T, D)
        C, compared with image tokens.
    latents : tensor (n, latent_channels, latent_side, latent_side) or None
        The low-level picture; None without a low-level module.
    features : tensor (n, P, F) or None
        Low-level contrastive features; None without a low-level module.
    skips : list of (tensor, tensor)
        For each entry point the features added to and the skip output, each (n, features), neither detached; empty without
        Skip-LoRA.
    """

    backbone_tokens: torch.Tensor
    retrieval_tokens: torch.Tensor
    latents: torch.Tensor | None
    features: torch.Tensor | None
    skips: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)


class BrainNetwork(nn.Module):
    """One ridge per subject, and a backbone, heads, prior, low-level module and projector that all subjects share.

        V -- ridge --> x0 -- blocks --> xL -- token head --> B (T, D) -- retrieval projector --> C (T, D)
                                         |                   '-- prior --> image tokens
                                         '-- low level --> latents, features

    With the affine backbone there are no blocks and xL is x0. MindEye2 paper, Figure 2; MindTuner paper, fingerprint.

    Parameters
    ----------
    config : ModelConfig
        Sizes.
    voxels : dict of str to int
        The number of voxels V of each subject, by name.
    without : tuple of str
        Those of ``lowlevel``, ``prior`` and ``retrieval`` that the network has not: some published ones lack the first two,
        whose attribute is then None. Without the last, C is B: a plain regression's (``training.token_ridge``).

    Examples
    --------
    >>> from mindtuner.config import load_config
    >>> network = BrainNetwork(load_config("quick").model, {"subj01": 30}).eval()
    >>> outputs = network(torch.zeros(2, 30), "subj01")
    >>> outputs.backbone_tokens.shape, network.projector(outputs.backbone_tokens).shape
    (torch.Size([2, 16, 128]), torch.Size([2, 384]))
    """

    def __init__(self, config: ModelConfig, voxels: dict[str, int], without: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.config, self.without = config, tuple(without)
        self.fingerprint_subject: str | None = None
        self.fingerprint_config: FingerprintConfig | None = None
        self._fingerprint_names: list[str] = []
        self.ridges = nn.ModuleDict({name: nn.Linear(count, config.hidden) for name, count in voxels.items()})
        self.blocks = nn.ModuleList(ResidualBlock(config.hidden, config.backbone_dropout) for _ in range(config.blocks))
        self.head = TokenHead(config.hidden, config.tokens, config.width)
        self.retrieval = nn.Identity() if "retrieval" in without else RetrievalProjector(config.width)
        self.lowlevel = None if "lowlevel" in without else LowLevel(config)
        self.prior = None if "prior" in without else DiffusionPrior(config)
        self.projector = AdaptiveProjector(config.width, config.text_width)
        self.skips = nn.ModuleList()  # at x0, after each block, and perhaps at the token head
        self.new_blocks = nn.ModuleList()  # after the blocks, a fingerprint's own
        self.expectation: ExpectedHidden | None = None  # a base's, from which a new subject's ridge starts
        self.centre: Centre | None = None  # a tuned network's, from which retrieval measures
        self.sureness: Sureness | None = None  # a tuned network's, by which words are kept or dropped
        self.confidence: Confidence | None = None  # a tuned network's, in what it retrieves

    def forward(
        self, voxels: torch.Tensor, subject: str, shift: torch.Tensor | None = None, lowlevel: bool = True
    ) -> BrainOutputs:
        """Decode the betas of one subject; call ``prior`` and ``projector`` on the tokens that come out.

        Parameters
        ----------
        voxels : tensor, float32 (n, V)
            Betas, z-scored as in training.
        subject : str
        shift : tensor (n, h), optional
            Added to what the ridge says; training does so with ``cross_fitted`` trials.
        lowlevel : bool
            Whether the low-level module is asked too, where there is one.

        Returns
        -------
        BrainOutputs

        Raises
        ------
        ValueError
            For a subject without a ridge, a wrong V, and, on a network with a fingerprint, for any other subject: LoRA has
            changed the shared weights for this one, the base network decodes the others.
        """
        x = self.embed(voxels, subject)
        x = x if shift is None else x + shift
        return self.decode_hidden(x, [skip(voxels) for skip in self.skips], lowlevel)

    def embed(self, voxels: torch.Tensor, subject: str) -> torch.Tensor:
        """The subject's ridge alone.

        In pretraining, the embeddings of all subjects can be joined and go through ``decode_hidden`` as one batch.

        Parameters
        ----------
        voxels : tensor, float32 (n, V)
        subject : str

        Returns
        -------
        tensor, float32 (n, h)

        Raises
        ------
        ValueError
            As ``forward`` does.
        """
        if subject not in self.ridges:
            raise ValueError(f"subject {subject!r} has no ridge; expected one of {', '.join(self.ridges)}")
        if self.fingerprint_subject not in (None, subject):
            raise ValueError(f"subject {subject!r}: the fingerprint is that of {self.fingerprint_subject!r}")
        ridge = self.ridges[subject]
        if voxels.shape[-1] != ridge.in_features:
            raise ValueError(f"subject {subject!r}: {voxels.shape[-1]} voxels; expected {ridge.in_features}")
        return ridge(voxels)

    def decode_hidden(
        self, x: torch.Tensor, skip_outputs: list[torch.Tensor] | tuple = (), lowlevel: bool = True
    ) -> BrainOutputs:
        """Everything after the ridge.

        Parameters
        ----------
        x : tensor (n, h)
        skip_outputs : sequence of tensor
            Of Skip-LoRA, in the order of ``skips``.
        lowlevel : bool
            As in ``forward``.

        Returns
        -------
        BrainOutputs
        """
        waiting, pairs = list(skip_outputs), []

        def add_skip(stream: torch.Tensor) -> torch.Tensor:
            if not waiting:
                return stream
            pairs.append((stream, waiting.pop(0)))
            return stream + pairs[-1][1]

        x = add_skip(x)
        for block in self.blocks:
            x = add_skip(block(x))
        for block in self.new_blocks:
            x = block(x)
        backbone_tokens = add_skip(self.head(x)).unflatten(1, (self.config.tokens, self.config.width))
        latents, features = self.lowlevel(x) if lowlevel and self.lowlevel is not None else (None, None)
        return BrainOutputs(backbone_tokens, self.retrieval(backbone_tokens), latents, features, pairs)

    def add_ridge(self, subject: str, n_voxels: int) -> None:
        """Add a fresh trainable ridge, drawn from torch's global generator.

        Parameters
        ----------
        subject : str
        n_voxels : int

        Raises
        ------
        ValueError
            Where the subject has one already.
        """
        if subject in self.ridges:
            raise ValueError(f"subject {subject!r} has a ridge already; expected a new subject")
        self.ridges[subject] = nn.Linear(n_voxels, self.config.hidden).to(self._anchor)

    def add_fingerprint(self, subject: str, n_voxels: int, config: FingerprintConfig) -> None:
        """Freeze everything and add what trains for a new subject: a ridge, and what ``config`` asks for (MindTuner paper).

        LoRA goes around every Linear of the token head and the retrieval projector and, with ``lora_blocks`` as in the paper,
        of the residual blocks. Skip-LoRA enters at x0, after each block of the base (or the first ``skip_blocks`` of them)
        and, with ``skip_head``, at the token head. ``new_blocks`` residual blocks follow those of the base (on an affine
        base, the ridge) and train whole. ``tune_projector`` lets the Adaptive Projector train on. Before the first step the
        function is bit for bit the base's with the new ridge.

        Frozen is meant of the weights only: in training mode the backbone's dropout stays on, as it was when these weights
        were trained, and the prior goes on dropping its conditions. All starting values come from torch's global generator.

        Parameters
        ----------
        subject : str
        n_voxels : int
        config : FingerprintConfig

        Raises
        ------
        ValueError
            Where a fingerprint or the subject's ridge is there already.

        Examples
        --------
        >>> from mindtuner.config import load_config
        >>> config = load_config("quick")
        >>> network = BrainNetwork(config.model, {"subj02": 20})
        >>> network.add_fingerprint("subj01", 30, config.fingerprint)
        >>> sorted({name.split(".")[0] for name in network.fingerprint_state()})
        ['head', 'retrieval', 'ridges']
        """
        if self.fingerprint_subject is not None:
            raise ValueError(f"the network holds the fingerprint of {self.fingerprint_subject!r} already")
        self.requires_grad_(False)
        self.add_ridge(subject, n_voxels)
        if config.lora:
            for part in (self.blocks, self.head, self.retrieval) if config.lora_blocks else (self.head, self.retrieval):
                add_lora(part, config.rank, config.alpha)
        if config.skip:
            entered = len(self.blocks) if config.skip_blocks < 0 else config.skip_blocks
            widths = [self.config.hidden] * (1 + entered)
            if config.skip_head:
                widths.append(self.config.tokens * self.config.width)
            for width in widths:
                own = config.skip_rank or config.rank, config.skip_alpha or config.alpha
                self.skips.append(SkipLoRA(n_voxels, width, *own).to(self._anchor))
        for _ in range(config.new_blocks):
            block = ResidualBlock(self.config.hidden, self.config.backbone_dropout, silent=True)
            self.new_blocks.append(block.to(self._anchor).train(self.training))
        self.projector.requires_grad_(config.tune_projector)
        self.fingerprint_subject, self.fingerprint_config = subject, config
        self._fingerprint_names = [name for name, p in self.named_parameters() if p.requires_grad]

    def fingerprint_state(self) -> dict[str, torch.Tensor]:
        """The tensors that ``add_fingerprint`` made trainable, by parameter name, and nothing of the base.

        Centre, sureness and confidence are among them where the network has them. They are detached, not copied. Empty
        without a fingerprint.
        """
        return {
            **{name: self.get_parameter(name).detach() for name in self._fingerprint_names},
            **_buffers("centre", self.centre),
            **_buffers("sureness", self.sureness),
            **_buffers("confidence", self.confidence),
        }

    @torch.no_grad()
    def load_fingerprint(self, state: dict[str, torch.Tensor]) -> None:
        """Copy a saved ``fingerprint_state`` into the fingerprint that ``add_fingerprint`` has made.

        Raises ValueError, before anything is changed, where names or shapes differ from it.
        """
        centre, sureness, confidence = self.centre, self.sureness, self.confidence
        if centre is None and "centre.backbone" in state:
            centre = Centre(self.config.tokens, self.config.width).to(self._anchor)
        if sureness is None and "sureness.coefficients" in state:
            sureness = Sureness(state["sureness.coefficients"].numel() - 1).to(self._anchor)
        if confidence is None and "confidence.sharpness" in state:
            confidence = Confidence().to(self._anchor)
        added = {"centre": centre, "sureness": sureness, "confidence": confidence}
        own = self.fingerprint_state()
        for name, part in added.items():
            own |= _buffers(name, part)
        if state.keys() != own.keys():
            raise ValueError(
                f"fingerprint: {min(state.keys() ^ own.keys())} is only on one side; expected the "
                f"{len(own)} tensors of this network's fingerprint"
            )
        for name, tensor in state.items():
            if tensor.shape != own[name].shape:
                raise ValueError(f"fingerprint: {name} has shape {tuple(tensor.shape)}; expected {tuple(own[name].shape)}")
        for name, tensor in state.items():
            own[name].copy_(tensor)
        self.centre, self.sureness, self.confidence = centre, sureness, confidence

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that an optimiser should see."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @property
    def _anchor(self) -> torch.Tensor:
        """Stands for the device and dtype of the shared part."""
        return self.projector.matrix.weight


def _buffers(name: str, part: nn.Module | None) -> dict[str, torch.Tensor]:
    """A part's buffers by their names in the network, where there is one."""
    return {} if part is None else {f"{name}.{key}": value for key, value in part.named_buffers()}
