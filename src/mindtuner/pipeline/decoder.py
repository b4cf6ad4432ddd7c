"""The decoder that a person uses: voxels in; candidates, words and pictures out."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image
from torch import nn

from mindtuner.config import DecodeConfig
from mindtuner.data import Stimuli
from mindtuner.data.hold_out import mask
from mindtuner.decoding.decoder import Decoder, Predictions
from mindtuner.decoding.reading import PhraseReader
from mindtuner.decoding.training_images import TrainingTokens, draw_to_neighbours
from mindtuner.decoding.words import TextBank, Words
from mindtuner.errors import UserError
from mindtuner.evaluation.scores.retrieval import cosine
from mindtuner.formats.image_files import read_picture, square, upright_rgb
from mindtuner.generators.compact import CompactGenerator
from mindtuner.generators.painter import Painter
from mindtuner.model import BrainNetwork
from mindtuner.pipeline.features import Features, TextEncoder
from mindtuner.pipeline.painting import Painted, paint
from mindtuner.pipeline.words import phrase_reader, read_words
from mindtuner.towers.embed import reduce


@dataclass(frozen=True)
class Retrieved:
    """Which of m candidates n brain patterns are most like.

    Attributes
    ----------
    similarity : array, float64 (n, m)
        Cosine of the flattened tokens.
    """

    similarity: np.ndarray

    @property
    def order(self) -> np.ndarray:
        """Positions of the candidates, most similar first: int64 (n, m)."""
        return np.argsort(-self.similarity, axis=1, kind="stable")

    @property
    def best(self) -> np.ndarray:
        """Position of the most similar candidate: int64 (n,)."""
        return self.similarity.argmax(1)

    def __repr__(self) -> str:
        n, m = self.similarity.shape
        return (
            f"{n} brain patterns among {m} images; most similar: {self.best.tolist() if n <= 10 else self.best[:10].tolist()}"
        )


class SubjectDecoder:
    """Reads one subject's voxels; made by ``TunedSubject.decoder``.

    Voxels are betas float32 (n, V), z-scored as those that were tuned on. Every method takes single trials; average betas of
    an image's repeats beforehand, or name the images with ``stimulus`` in ``predict``.

    Parameters
    ----------
    network : BrainNetwork
        One that knows the subject.
    subject : str
        What the network calls the subject.
    config : DecodeConfig
    seed : int
        Of the noise in the prior and the generator.
    features : Features, optional
        Of the stimuli whose captions and tokens decoding draws on: those of training images alone.
    category : str
        A category that was held out, which decoding may not draw on either.
    without : array of int, optional
        Ids of stimuli that tuning kept out to choose settings by, which decoding may not draw on either.
    text_encoder, generator, bank : optional
        By default those of the compact system, opened when they are first needed.
    """

    def __init__(
        self,
        network: BrainNetwork,
        subject: str,
        config: DecodeConfig,
        seed: int,
        features: Features | None = None,
        *,
        category: str = "",
        without: np.ndarray | None = None,
        text_encoder: TextEncoder | None = None,
        generator: Painter | None = None,
        bank: TextBank | None = None,
    ):
        self.subject, self.config, self.seed = subject, config, seed
        self._decoder = Decoder(network, subject, config, seed)
        self._features, self._category, self._without = features, category, without
        self._text_encoder, self._generator, self._bank = text_encoder, generator, bank

    def __repr__(self) -> str:
        return f"Decoder of {self.subject}, {self.n_voxels:,} voxels: predict, retrieve, describe, reconstruct"

    @property
    def n_voxels(self) -> int:
        """How many voxels it reads, V."""
        return cast(nn.Linear, self.network.ridges[self.subject]).in_features

    def predict(self, voxels: np.ndarray, stimulus: np.ndarray | None = None) -> Predictions:
        """Tokens, low-level latents and text of each image.

        Parameters
        ----------
        voxels : array, float32 (n, V)
        stimulus : array of int (n,), optional
            The image of each trial; trials of one image are averaged. By default each trial stands for itself.

        Raises
        ------
        UserError
            Where the number of voxels is wrong, a beta is not finite, or a voxel is the same in all of many trials.
        """
        voxels = np.asarray(voxels, np.float32)
        return self._decoder.predict(voxels, np.arange(len(voxels)) if stimulus is None else np.asarray(stimulus))

    def retrieve(self, voxels: np.ndarray, images: np.ndarray | Sequence[Image.Image | str | Path]) -> Retrieved:
        """Find what was seen among candidates.

        Parameters
        ----------
        voxels : array, float32 (n, V)
        images : array of int (m,), array (m, 3, H, W), or sequence of m PIL images or picture files
            Candidates: ids of stimuli, whose tokens the features hold; or pictures, uint8 or floats in 0..1, at which the
            image tower looks now.

        Returns
        -------
        Retrieved

        Raises
        ------
        UserError
            Where voxels or candidates are not of these forms.
        """
        tokens, said = self._tokens_of(images), self.predict(voxels)
        found, tokens = said.retrieval_tokens, said.compared(tokens)
        return Retrieved(cosine(found.reshape(len(found), -1), tokens.reshape(len(tokens), -1)))

    def describe(self, voxels: np.ndarray) -> list[str]:
        """The caption of a training image that is nearest to each brain pattern.

        Parameters
        ----------
        voxels : array, float32 (n, V)

        Returns
        -------
        list of n str

        Raises
        ------
        UserError
            Where there is no caption to describe with, or voxels are not of this form.
        """
        if not self.bank.captions:
            raise UserError("bank: holds no caption; expected training images with captions")
        return Words(self.predict(voxels).text, self.bank).captions

    def words(self, found: Predictions) -> Words:
        """What ``predict`` returned, in words: phrases with how sure the brain is of them, embeddings, and prompts.

        Where the network does not know how sure it may be, or no features are there, the nearest captions stand for them.
        """
        return read_words(found, self.network, self.bank, self.reader)

    def reconstruct(self, voxels: np.ndarray, stages: bool = False) -> np.ndarray | dict[str, np.ndarray]:
        """Paint what was seen.

        Parameters
        ----------
        voxels : array, float32 (n, V)
        stages : bool
            Return all stages by name: ``lowlevel``, ``reconstructed``, ``corrected`` by what the brain says in words.

        Returns
        -------
        array, uint8 (n, 3, H, W), or dict of such

        Raises
        ------
        UserError
            Where the network has no prior to paint from, or voxels are not of this form.
        """
        found = self.predict(voxels)
        painted = self.paint(found, np.arange(len(found.images)))
        return painted.stages if stages else painted.pictures

    def paint(self, found: Predictions, rows: np.ndarray, tokens: np.ndarray | None = None) -> Painted:
        """Paint the images at positions ``rows`` (n,) of what ``predict`` returned.

        Tokens (n, T, D) are by default those that the prior expects, drawn to training images.
        """
        if tokens is None:
            tokens = self.draw(self.expected_tokens(found, rows))
        return paint(self.generator, tokens, found, rows, self.words(found.rows(rows)), self.subject)

    def expected_tokens(self, found: Predictions, rows: np.ndarray) -> np.ndarray:
        """The prior's tokens of some of the images, float32 (n, T, D)."""
        return self._decoder.image_tokens(found.backbone_tokens[rows], found.images[rows])

    def draw(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens (n, T, D) drawn to the training images that are most like them."""
        return draw_to_neighbours(tokens, self.training_tokens, self.config.neighbours)

    def release(self) -> None:
        """Move the network to the CPU's memory: its part is done, and generators want the room."""
        self.network.cpu()

    @property
    def network(self) -> BrainNetwork:
        """What predicts."""
        return self._decoder.network

    @functools.cached_property
    def training_images(self) -> np.ndarray:
        """Ids of the stimuli that decoding may draw on, int64 (m,): neither test images nor of a category held out."""
        found = training_images(self.features.stimuli, self._category)
        return found if self._without is None else np.setdiff1d(found, self._without)

    @functools.cached_property
    def training_tokens(self) -> TrainingTokens | np.ndarray:
        """Tokens of these images, (m, T, D), read from disk when asked for; none where decoding draws on no neighbours."""
        if self.config.neighbours == 0:
            return np.empty((0, 1, 1), np.float32)
        return TrainingTokens(self.features.caches["tokens"], self.training_images)

    @functools.cached_property
    def bank(self) -> TextBank:
        """Captions of these images."""
        if self._bank is not None:
            return self._bank
        return TextBank.of(self.features.stimuli, self.training_images, self._text_encoder or self.features.text_encoder)

    @functools.cached_property
    def reader(self) -> PhraseReader | None:
        """What reads phrases of captions of these images; None without features, or where there is no phrase."""
        if self._features is None:
            return None
        encoder = self._text_encoder or self.features.text_encoder
        return phrase_reader(self.features.stimuli, self.features.caches, self.training_images, encoder)

    @functools.cached_property
    def generator(self) -> Painter:
        """What paints."""
        if self._generator is not None:
            return self._generator
        if self.features.full_size:
            raise UserError("generator: is missing; expected the one of full size, as the features are of full size")
        return CompactGenerator(self.config, self.seed, self.features.weights)

    @property
    def features(self) -> Features:
        """Raises UserError where none were given."""
        if self._features is None:
            raise UserError("features: are missing; expected those of the stimuli, from mindtuner.embed")
        return self._features

    def _tokens_of(self, images: np.ndarray | Sequence[Image.Image | str | Path]) -> np.ndarray:
        if not isinstance(images, np.ndarray):
            images = list(images)
            if images and isinstance(images[0], (str, Path, Image.Image)):
                images = _read_pictures(images)
        images = np.asarray(images)
        if images.ndim == 1 and np.issubdtype(images.dtype, np.integer):
            count = len(self.features.stimuli)
            if len(images) == 0 or images.min() < 0 or images.max() >= count:
                raise UserError(f"images: are {images[:5].tolist()} ...; expected ids of stimuli in 0..{count - 1}")
            return np.asarray(self.features.caches["tokens"][images], np.float32)
        if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
            raise UserError(f"images: have shape {images.shape}; expected ids (m,), or pictures (m, 3, H, W)")
        return self.features.image_encoder.tokens(reduce(images / 255 if images.dtype == np.uint8 else images))


def training_images(stimuli: Stimuli, category: str = "") -> np.ndarray:
    """Ids of all images that are neither shared nor of the category, int64 (m,)."""
    held_out = mask(stimuli.captions, category) if category else stimuli.of_category
    return np.flatnonzero(~(stimuli.is_shared | held_out))


def _read_pictures(pictures: Sequence[Image.Image | str | Path]) -> np.ndarray:
    """Pictures of any size as uint8 (m, 3, 224, 224): the central square, scaled, as stimuli are."""
    return np.stack(
        [
            square(_upright(picture)) if isinstance(picture, Image.Image) else read_picture(Path(picture))
            for picture in pictures
        ]
    )


def _upright(picture: Image.Image) -> Image.Image:
    found = upright_rgb(picture)
    if found is None:
        raise UserError("images: a picture is transparent in places; expected it on the background that was shown")
    return found
