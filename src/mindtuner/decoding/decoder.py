"""From voxels to tokens and words: the decoder of one subject, or of several on one base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch

from mindtuner.config import DecodeConfig
from mindtuner.data.zscore import LARGEST
from mindtuner.decoding.multi_subject import MultiSubjectNetwork
from mindtuner.errors import UserError
from mindtuner.model import BrainNetwork, BrainOutputs
from mindtuner.runtime import derive_seed, device
from mindtuner.training.batches import refuse_constant_voxels
from mindtuner.training.fingerprint import Fingerprint

CHUNK = 512  # trials that go through the network together,
NUMBERS = 2**21  # and at most so many numbers of their tokens: 4 trials at paper size, where a GPU has no room for 512


@dataclass(frozen=True)
class Predictions:
    """What a brain says of n images.

    Attributes
    ----------
    images : array, int64 (n,)
        Stimulus ids, ascending; row k of the others belongs to ``images[k]``.
    backbone_tokens : array, float32 (n, T, D)
        B.
    retrieval_tokens : array, float32 (n, T, D)
        C, or ``Centre``'s mixture with B, as the config asks.
    latents : array, float32 (n, 8, 16, 16), or None
        Of the low-level submodule; None without one.
    text : array, float32 (n, d)
        Unit vectors in the text tower's space.
    mean_token : array, float32 (T, D), or None
        What to take off the tokens of images before they are compared with ``retrieval_tokens`` (``Centre``); None for
        nothing.
    """

    images: np.ndarray
    backbone_tokens: np.ndarray
    retrieval_tokens: np.ndarray
    latents: np.ndarray | None
    text: np.ndarray
    mean_token: np.ndarray | None = None

    def rows(self, which: np.ndarray) -> Predictions:
        """Of some of the images, by position (m,)."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "mean_token"}
        some = {name: None if array is None else array[which] for name, array in own.items()}
        return Predictions(**some, mean_token=self.mean_token)

    def compared(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens of images (..., T, D) as ``retrieval_tokens`` are compared with them."""
        return tokens if self.mean_token is None else tokens - self.mean_token


class Decoder:
    """Decodes one subject with a tuned network, or several with one base and their fingerprints.

    Parameters
    ----------
    network : BrainNetwork
        One that knows the subject, or the base that the fingerprints were tuned on.
    subject : str, or mapping of str to Fingerprint
        The subject's name in the network, such as ``"subj01"``, or fingerprints by names of your own.
    config : DecodeConfig
        Sampling steps, and what the retrieval tokens are.
    seed : int
        Of the prior's noise; the same for every method, so that methods differ by their brains alone.

    Raises
    ------
    UserError
        Where a fingerprint belongs to another base.

    Examples
    --------
    >>> from mindtuner.config import load_config
    >>> config = load_config("quick", decode={"retrieval_tokens": "projected"})
    >>> decoder = Decoder(BrainNetwork(config.model, {"subj01": 30}), "subj01", config.decode, seed=0)
    >>> betas = np.random.default_rng(0).normal(size=(3, 30)).astype(np.float32)
    >>> found = decoder.predict(betas, stimulus=np.array([7, 4, 7]))  # image 7 was seen twice
    >>> found.images, found.backbone_tokens.shape, found.text.shape
    (array([4, 7]), (2, 16, 128), (2, 384))
    """

    def __init__(self, network: BrainNetwork, subject: str | Mapping[str, Fingerprint], config: DecodeConfig, seed: int):
        self.network = network.eval().to(device())
        self.config, self.seed = config, seed
        self._one = subject if isinstance(subject, str) else None
        self._mixed = None if isinstance(subject, str) else MultiSubjectNetwork(self.network, subject)

    def predict(self, voxels: np.ndarray, stimulus: np.ndarray, subject: str | None = None) -> Predictions:
        """Decode one subject's trials, averaging the outputs of trials that show the same image.

        For pictures, give the averaged backbone tokens to ``image_tokens``: so the prior runs once an image, and only for
        those to be painted.

        Parameters
        ----------
        voxels : array, float32 (n_trials, V)
            Betas, z-scored as in training.
        stimulus : array, int (n_trials,)
            The image of each trial; pass distinct numbers to decode single trials.
        subject : str, optional
            Whose trials; to be named where the decoder has several.

        Returns
        -------
        Predictions

        Raises
        ------
        UserError
            Where the number of voxels is wrong, a beta is not finite or larger than any measurement, a voxel is the same in
            all of many trials, or the network's answers are not finite.
        """
        name = self._named(subject)
        return self.predict_subjects({name: voxels}, {name: stimulus})[name]

    @torch.no_grad()
    def predict_subjects(
        self, voxels: Mapping[str, np.ndarray], stimulus: Mapping[str, np.ndarray]
    ) -> dict[str, Predictions]:
        """Decode trials of several subjects in one pass through what they share; each as ``predict`` would alone.

        Parameters
        ----------
        voxels : mapping of str to array, float32 (n, V)
            By subject.
        stimulus : mapping of str to array, int (n,)

        Returns
        -------
        dict of str to Predictions

        Raises
        ------
        UserError
            As ``predict``.
        """
        for name, betas in voxels.items():
            self._refuse_bad_voxels(name, betas, stimulus[name])
        parts = [
            _on_the_cpu(self._outputs({name: torch.from_numpy(betas).to(device()) for name, betas in chunk.items()}))
            for chunk in _chunks(voxels, self._together)
        ]
        sizes = [len(betas) for betas in voxels.values()]
        said = {field: torch.cat([part[field] for part in parts]) for field in parts[0]}
        for field, values in said.items():
            if not torch.isfinite(values).all():
                raise UserError(f"network: says {field} that are not finite of finite betas; expected whole weights")
        found = {field: values.split(sizes) for field, values in said.items()}
        averaged, images = [], []
        for k, name in enumerate(voxels):
            numbers, group = np.unique(stimulus[name], return_inverse=True)
            images.append(numbers)
            averaged.append({field: _group_means(values[k], group) for field, values in found.items()})
        return {
            name: Predictions(
                shown,
                means["backbone_tokens"].numpy(),
                self._retrieval_tokens(means, name).numpy(),
                means["latents"].numpy() if "latents" in means else None,
                self.text_of(means["backbone_tokens"], name),
                self.mean_token(name),
            )
            for name, shown, means in zip(voxels, images, averaged, strict=True)
        }

    def trial_texts(self, voxels: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """Text of one subject's trials, each by itself, as if its ridge had been fitted without the trial's image.

        Parameters
        ----------
        voxels : array, float32 (n, V)
        shift : array, float32 (n, h)
            What such a ridge says otherwise, ``Feed.shift``.

        Returns
        -------
        array, float32 (n, d)
            Unit vectors.
        """
        return np.concatenate([self.text_of(said["backbone_tokens"]) for said in self._trials(voxels, shift)])

    def trial_tokens(self, voxels: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """Retrieval tokens of these trials, float32 (n, T, D), with the arguments of ``trial_texts``."""
        name = self._named(None)
        return np.concatenate([self._retrieval_tokens(said, name).numpy() for said in self._trials(voxels, shift)])

    @torch.no_grad()
    def _trials(self, voxels: np.ndarray, shift: np.ndarray) -> Iterator[dict[str, torch.Tensor]]:
        """What the network says of one subject's trials, each by itself, with ``shift`` added to its ridge."""
        name = self._named(None)
        for some in np.array_split(np.arange(len(voxels)), 1 + len(voxels) // self._together):
            betas, added = (torch.from_numpy(array[some]).to(device()) for array in (voxels, shift))
            yield _on_the_cpu(self._network_of(name)(betas, name, added, lowlevel=False))

    def image_tokens(self, backbone_tokens: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Image tokens to paint from: a sample of the prior, or with one step the tokens to expect.

        All subjects share the prior, so their tokens can be joined. An image's noise depends on the seed and its id alone.
        Many rows pass the prior together, which may round otherwise than one by one.

        Parameters
        ----------
        backbone_tokens : array, float32 (n, T, D)
        images : array, int (n,)
            Stimulus ids.

        Returns
        -------
        array, float32 (n, T, D)

        Raises
        ------
        UserError
            Where the network has no prior.
        """
        if "retrieval" in self.network.without:  # a plain regression: B is what to expect of the image's tokens already
            return np.asarray(backbone_tokens, np.float32)
        if self.network.prior is None:
            raise UserError("network: has no prior; expected one that has, to paint from")
        tokens = torch.as_tensor(backbone_tokens, dtype=torch.float32)
        start = torch.empty(tokens.shape)
        for k, image in enumerate(images):
            start[k].normal_(generator=torch.Generator().manual_seed(derive_seed(self.seed, "prior", int(image))))
        room = self._together
        drawn = [
            self.network.prior.sample(some.to(device()), self.config.prior_steps, start=noise).cpu()
            for some, noise in zip(tokens.split(room), start.split(room), strict=True)
        ]
        return torch.cat(drawn).numpy()

    @torch.no_grad()
    def text_of(self, tokens: torch.Tensor, subject: str | None = None) -> np.ndarray:
        """Image tokens in the text tower's space, by the Adaptive Projector.

        A brain's text comes from its backbone tokens: trained as the mean of image tokens given the brain, they lose less
        than a sample of the prior.

        Parameters
        ----------
        tokens : tensor (n, T, D)
        subject : str, optional

        Returns
        -------
        array, float32 (n, d)
            Unit vectors.
        """
        projector = self._network_of(self._named(subject)).projector
        return projector(tokens.to(device())).float().cpu().numpy()

    def mean_token(self, subject: str) -> np.ndarray | None:
        """What is taken off image tokens before they are compared with a subject's, (T, D); None for nothing."""
        centre = self._network_of(self._named(subject)).centre
        if self.config.retrieval_tokens == "projected" or centre is None or not centre.target.any():
            return None
        return centre.target.float().cpu().numpy()

    def _retrieval_tokens(self, means: dict[str, torch.Tensor], subject: str) -> torch.Tensor:
        if self.config.retrieval_tokens == "projected":
            return means["retrieval_tokens"]
        centre = self._network_of(self._named(subject)).centre
        if centre is None:
            raise UserError(
                "network: holds no mean answer to measure from, which tune adds; expected a tuned network, or "
                "retrieval_tokens: projected in the config's decode section"
            )
        return centre(means["backbone_tokens"], means["retrieval_tokens"])

    @property
    def _together(self) -> int:
        """Rows that pass the network at a time."""
        return max(1, min(CHUNK, NUMBERS // (self.network.config.tokens * self.network.config.width)))

    def _named(self, subject: str | None) -> str:
        known = [self._one] if self._mixed is None else list(self._mixed.subjects)
        if subject is None and len(known) == 1:
            return known[0]
        if subject not in known:
            raise UserError(f"subject: is {subject!r}; expected one of {', '.join(known)}")
        return subject

    def _network_of(self, subject: str) -> BrainNetwork:
        return self.network if self._mixed is None else self._mixed.subjects[subject]

    def _outputs(self, voxels: dict[str, torch.Tensor]) -> BrainOutputs:
        if self._mixed is not None:
            return self._mixed(voxels)
        [(name, betas)] = voxels.items()
        return self.network(betas, name)

    def _refuse_bad_voxels(self, name: str, voxels: np.ndarray, stimulus: np.ndarray) -> None:
        network = self._network_of(self._named(name))
        known = name if self._mixed is None else network.fingerprint_subject
        if known not in network.ridges:
            raise UserError(f"{name}: the network has no ridge for it; expected one of {', '.join(network.ridges)}")
        expected = network.ridges[known].in_features
        if voxels.ndim != 2 or voxels.shape[1] != expected or len(voxels) == 0:
            raise UserError(f"{name}: voxels has shape {voxels.shape}; expected (trials, {expected})")
        if stimulus.shape != (len(voxels),):
            raise UserError(f"{name}: stimulus has shape {stimulus.shape}; expected ({len(voxels)},), one for each trial")
        measured = np.abs(voxels) <= LARGEST  # false of NaN too
        if not measured.all():
            trial, voxel = np.argwhere(~measured)[0]
            found = f"voxel {voxel} is {voxels[trial, voxel]:g} in trial {trial}"
            raise UserError(f"{name}: {found}; expected finite betas of at most a million")
        refuse_constant_voxels([voxels], name)


def _on_the_cpu(outputs: BrainOutputs) -> dict[str, torch.Tensor]:
    """Tokens and latents as far as there are any, float32: those of all trials would fill a GPU."""
    fields = ("backbone_tokens", "retrieval_tokens", "latents")
    return {field: getattr(outputs, field).float().cpu() for field in fields if getattr(outputs, field) is not None}


def _chunks(voxels: Mapping[str, np.ndarray], size: int) -> list[dict[str, np.ndarray]]:
    """The joined batch in pieces of at most ``size`` trials, each again by subject."""
    chunks: list[dict[str, np.ndarray]] = []
    room = 0
    for name, betas in voxels.items():
        start = 0
        while start < len(betas):
            if room == 0:
                chunks.append({})
                room = size
            chunks[-1][name] = betas[start : start + room]
            start += len(chunks[-1][name])
            room -= len(chunks[-1][name])
    return chunks


def _group_means(values: torch.Tensor, group: np.ndarray) -> torch.Tensor:
    """values (n, ...), group (n,) in 0..m - 1 -> mean of each group (m, ...)."""
    count = np.bincount(group)
    total = torch.zeros(len(count), *values.shape[1:]).index_add_(0, torch.from_numpy(group), values)
    return total / torch.from_numpy(count).view(-1, *[1] * (values.dim() - 1))
