"""What the frozen towers say about the stimuli of a dataset: run once, cached, and compared with what a base was trained on.

What the towers say of images is what a base learns to say, so base, features and generator must mean the same by it. A cache
tells its towers by their identities; they go onto the cards of what is trained on it, and are compared there, field by field.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mindtuner.config import ModelConfig
from mindtuner.data import Dataset, Stimuli, open_cache
from mindtuner.data.pictures import TRAINED_ON, Pictures, kept_pictures
from mindtuner.data.splits import refuse_other_split
from mindtuner.data.stimuli import picture_hashes
from mindtuner.errors import UserError
from mindtuner.files import read_json
from mindtuner.generators.compact import WEIGHTS, starting_prior
from mindtuner.model.prior import DiffusionPrior
from mindtuner.processes import processes
from mindtuner.towers.compact import Autoencoder, CompactImageEncoder, CompactTextEncoder, packaged, pictures_trained_on
from mindtuner.towers.embed import compact_towers
from mindtuner.towers.embed import embed as run_compact_towers
from mindtuner.towers.openclip import OpenClipTextEncoder
from mindtuner.towers.tower import Tower
from mindtuner.training import Targets

TextEncoder = CompactTextEncoder | OpenClipTextEncoder

COMPACT = "compact"
HASHED = 64  # test images that are looked at together
CONVENTIONS = ("token_norm", "image_range")
NAMES = tuple(field.name for field in dataclasses.fields(Targets))  # of the caches that training needs
_COMPACT_SIZES = {
    "tokens": 16,
    "width": 128,
    "text_width": 384,
    "latent_channels": 8,
    "latent_side": 16,
    "feature_positions": 16,
    "feature_width": 112,
}  # what the towers that this package carries give
_FIELDS = {
    "tokens": ("tokens", "width"),
    "text": ("text_width",),
    "latents": ("latent_channels", "latent_side"),
    "features": ("feature_positions", "feature_width"),
}  # of the model's config: the shape of an image's
_HOW = ("dtype",)  # how a tower computed, not what: bases and caches may differ in it


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """What frozen towers say about all N stimuli of a dataset; made by ``embed``.

    Attributes
    ----------
    folder : Path
        Where the caches lie.
    stimuli : Stimuli
        The images that the rows belong to.
    caches : mapping of str to array
        Rows by stimulus id, read from disk when asked for: ``tokens`` (N, T, D), ``text`` (N, d), ``latents`` (N, C, s, s),
        ``features`` and ``features_augmented`` (N, P, F), all float32; and ``pixels`` uint8 (N, 3, s, s), at the side s at
        which pictures are scored. Of stimuli without pictures ``text`` alone, and ``tokens`` (N, 1, d), which are the same.
    card : dict
        The dataset's card: ``simulated``, ``zscore`` and whatever else it says.
    full_size : bool
        Whether the towers are those of the papers (OpenCLIP bigG, ...), not the compact ones that the package carries.
    weights : Path or None
        Weights of a compact generator, whose autoencoder is one of the towers; None for those that the package ships.
    """

    folder: Path
    stimuli: Stimuli
    caches: Mapping[str, np.ndarray]
    card: dict
    full_size: bool = False
    weights: Path | None = None

    def __repr__(self) -> str:
        towers = "full size" if self.full_size else "compact"
        tokens = " x ".join(map(str, self.caches["tokens"].shape[1:]))
        return f"Features of {len(self.stimuli):,} stimuli by the {towers} towers: tokens {tokens}, in {self.folder}"

    @property
    def targets(self) -> Targets:
        """The caches that training needs."""
        return Targets(**{name: self.caches[name] for name in NAMES if name in self.caches})

    @functools.cached_property
    def described(self) -> dict:
        """What the card of a network trained on these features says of them: ``towers``, and ``conventions`` at full size."""
        if not self.stimuli.pictured:
            return {"towers": identities(self.folder, ("text",))}
        towers = identities(self.folder)
        said = {field: towers["tokens"][field] for field in CONVENTIONS if field in towers["tokens"]}
        return {"towers": towers, **({"conventions": said} if said else {})}

    @functools.cached_property
    def pictures(self) -> Pictures | None:
        """What tells the stimuli apart from other pictures; they are read for it once for each folder of caches.

        None of labels without pictures. Raises UserError where the folder knows other pictures.
        """
        return kept_pictures(self.stimuli, self.folder) if self.stimuli.pictured else None

    def trained_on(self, images: np.ndarray) -> dict:
        """What the card of a network says that was trained on these images, ids (n,)."""
        return {} if self.pictures is None else {TRAINED_ON: self.pictures.on_card(images)}

    @functools.cached_property
    def image_encoder(self) -> CompactImageEncoder:
        """The tower behind ``tokens``. Raises UserError at full size, where it is not kept open."""
        if self.full_size:
            raise UserError("images: are pictures, but the image tower of these features is not open; expected stimulus ids")
        return CompactImageEncoder()

    @functools.cached_property
    def text_encoder(self) -> CompactTextEncoder:
        """The tower behind ``text``. Raises UserError at full size, where it has to be given."""
        if self.full_size:
            raise UserError(
                "text_encoder: is missing; expected the text tower of these features, which are of full size "
                "(mindtuner.towers.openclip.OpenClipTextEncoder)"
            )
        return CompactTextEncoder()

    def starting_prior(self, config: ModelConfig) -> DiffusionPrior | None:
        """The prior that pretraining starts from: one that knows the compact tokens already; None at full size.

        Raises UserError where the weights hold a prior of other sizes than ``config``'s.
        """
        return None if self.full_size else starting_prior(config, self.weights)

    def check_model(self, config: ModelConfig, where: object) -> None:
        """Raise UserError where a model is not made for what these towers give."""
        if self.stimuli.pictured:
            check_towers(config, where, self.folder)
        else:
            wanted = {"tokens": 1, "width": self.text_encoder.width, "text_width": self.text_encoder.width}
            check_sizes(config, where, wanted, "labels without pictures")

    def refuse_without_pictures(self, what: str) -> None:
        """Raise UserError where there are no pictures, which ``what`` needs."""
        if not self.stimuli.pictured:
            raise UserError(
                f"{self.folder.parent}: has labels and no pictures, which {what} needs; expected a folder stimuli/ with an "
                "image for each (words alone: mindtuner fit, then evaluate)"
            )

    def check_stimuli(self, stimuli: Stimuli) -> None:
        """Raise UserError where these are features of other stimuli."""
        if stimuli is not self.stimuli and stimuli.hash != self.stimuli.hash:
            raise UserError(f"features: are of other stimuli ({self.folder}); expected those of this dataset")

    def check_same(self, card: dict, where: object) -> None:
        """Raise UserError where a network whose card this is was trained on other towers, or another split of this dataset.

        What the card does not say is not compared.
        """
        names = [name for name in NAMES if name in self.caches] if self.stimuli.pictured else ["text"]
        check_same(card, where, self.folder, names)
        refuse_other_split(card, self.card, where)


def embed(
    dataset: Dataset,
    cache: str | Path | None = None,
    *,
    towers: Sequence[Tower] | None = None,
    weights: str | Path | None = None,
) -> Features:
    """Run frozen image and text towers over all stimuli of a dataset, once.

    Parameters
    ----------
    dataset : Dataset
        Of N stimuli.
    cache : path, optional
        Folder of the caches, by default ``cache`` in the dataset's folder. What is there already is opened, not computed; a
        build that was stopped goes on.
    towers : sequence of Tower, optional
        Towers to run first, such as those of ``towers.openclip.openclip_towers`` and ``towers.low_level.low_level_towers``.
        By default those whose caches are there, else the compact ones that the package carries.
    weights : path, optional
        Weights of another compact generator (``mindtuner train-generator``), whose autoencoder makes the latents.

    Returns
    -------
    Features

    Raises
    ------
    UserError
        Where the cache is of other stimuli or towers, lacks one that training needs, or cannot be written; where the weights
        were trained on a test image.

    Examples
    --------
    >>> features = mindtuner.embed(mindtuner.load("data/nsd"))
    >>> features.caches["tokens"].shape[1:]
    (16, 128)
    """
    folder = dataset.root / "cache" if cache is None else Path(cache)
    if not dataset.stimuli.pictured:
        return _embed_labels(dataset, folder)
    weights = None if weights is None else Path(weights)
    for tower in towers or ():
        tower.build(folder, dataset.stimuli)
    if is_full_size(folder):
        stored = stored_targets(folder, dataset.stimuli)
        caches = {name: getattr(stored, name) for name in NAMES} | {"pixels": _Pixels(dataset.stimuli)}
        features = Features(folder, dataset.stimuli, caches, dataset.card, full_size=True)
        _look_at_pictures(features)
        return features
    if weights is not None:
        refuse_pictures_trained_on(weights, dataset.stimuli)
    texts = CompactTextEncoder()
    found = run_compact_towers(dataset, folder, CompactImageEncoder(), texts, Autoencoder(weights or packaged(WEIGHTS)))
    features = Features(folder, dataset.stimuli, found, dataset.card, weights=weights)
    features.__dict__["text_encoder"] = texts  # open already
    _look_at_pictures(features)
    return features


def _look_at_pictures(features: Features) -> None:
    """Have what tells the stimuli apart stand in the folder; of several processes the first looks."""
    if processes().index == 0:
        _ = features.pictures
    processes().wait()


def embed_tokens(dataset: Dataset, cache: str | Path | None = None) -> Features:
    """What the image tower alone says of all stimuli: enough to look images up and to read phrases, not to train or paint.

    Takes ``dataset`` and ``cache`` as ``embed`` does, and raises what it raises.
    """
    folder = dataset.root / "cache" if cache is None else Path(cache)
    if is_full_size(folder) or not dataset.stimuli.pictured:
        return embed(dataset, folder)
    towers = compact_towers(dataset.stimuli, folder, CompactImageEncoder(), None, None)
    found: dict = {tower.name: tower.build(folder, dataset.stimuli) for tower in towers if tower.name in ("pixels", "tokens")}
    return Features(folder, dataset.stimuli, found, dataset.card)


def _embed_labels(dataset: Dataset, folder: Path) -> Features:
    """Features of stimuli without pictures: what a brain is to say of one is the text of its label."""
    texts = CompactTextEncoder()
    [tower] = compact_towers(dataset.stimuli, folder, None, texts, None)[1:]
    text = tower.build(folder, dataset.stimuli)
    tokens = np.asarray(text[np.arange(len(dataset.stimuli))])[:, None]
    found: dict = {"tokens": tokens, "text": text}
    features = Features(folder, dataset.stimuli, found, dataset.card)
    features.__dict__["text_encoder"] = texts  # open already
    return features


def refuse_pictures_trained_on(weights: Path, stimuli: Stimuli) -> None:
    """Raise UserError where weights of a compact generator were trained on test images: nothing may be made with them."""
    known = pictures_trained_on(weights)
    if len(known) == 0:  # trained on scenes alone: nothing to hash
        return
    tested = np.flatnonzero(stimuli.is_shared)
    parts = np.array_split(tested, 1 + len(tested) // HASHED)
    count = sum(int(np.isin(picture_hashes(stimuli.images(some)), known).sum()) for some in parts)
    if count:
        raise UserError(f"{weights}: was trained on {count} of {len(tested)} test images; expected none of them")


class _Pixels:
    """Stimuli as they are stored, uint8 (n, 3, 224, 224) by their ids (n,)."""

    def __init__(self, stimuli: Stimuli) -> None:
        self._stimuli = stimuli

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        return np.round(self._stimuli.images(ids) * 255).astype(np.uint8)


# ---- the towers behind a cache


def is_full_size(cache: Path) -> bool:
    """Whether the tokens in ``cache`` are of other towers than the package's own. Raises UserError where nothing tells."""
    seal = cache / "tokens.json"
    return seal.exists() and _identity(seal).get("encoder") != COMPACT


def identities(cache: Path, names: Sequence[str] = NAMES) -> dict[str, dict]:
    """The identity of the tower behind each cache, by default all that training needs. UserError where one is missing."""
    return {name: _identity(cache / f"{name}.json") for name in names}


def sizes(cache: Path) -> dict[str, int]:
    """What a model's config has to say for these caches. Raises UserError where one is missing or is not one."""
    found: dict[str, int] = {}
    for name, fields in _FIELDS.items():
        shape = read_json(cache / f"{name}.json").get("shape")
        if not isinstance(shape, list) or len(shape) <= len(fields):
            raise UserError(f"{cache / name}.json: shape is {shape}; expected the description of a feature cache")
        found.update(zip(fields, shape[1:], strict=False))
    return found


def check_towers(config: ModelConfig, where: object, cache: Path | None = None) -> None:
    """Raise UserError where a model is not made for the outputs of the towers in use.

    These are those of full size whose caches are in ``cache``, else those that this package carries.
    """
    if cache is not None and is_full_size(cache):
        check_sizes(config, where, sizes(cache), f"the towers of {cache}")
    else:
        check_sizes(config, where, _COMPACT_SIZES, "the towers of this package (as in demo.yaml)")


def fits_towers(config: ModelConfig, cache: Path) -> bool:
    """Whether a model is made for what the towers in use give: those of ``check_towers``."""
    wanted = sizes(cache) if is_full_size(cache) else _COMPACT_SIZES
    return all(getattr(config, field) == value for field, value in wanted.items())


def check_sizes(config: ModelConfig, where: object, wanted: dict[str, int], origin: str) -> None:
    """Raise UserError where a model is not made for what the towers give."""
    for field, value in wanted.items():
        if getattr(config, field) != value:
            raise UserError(f"{where}: model.{field} is {getattr(config, field)}; expected {value}, which {origin} give")


def stored_targets(cache: Path, stimuli: Stimuli) -> Targets:
    """What is in ``cache``, whatever towers made it. Raises UserError where one is missing or of other stimuli."""
    return Targets(**{name: open_cache(cache, name, identity, stimuli.hash) for name, identity in identities(cache).items()})


def conventions_of(card: dict, where: object) -> dict[str, str]:
    """token_norm and image_range of the tokens that a base speaks. Raises UserError where its card does not say."""
    found = card.get("conventions")
    if not isinstance(found, dict) or not all(isinstance(found.get(field), str) for field in CONVENTIONS):
        raise UserError(
            f"{where}: card has no conventions; expected token_norm and image_range, as a base has that was "
            "trained on features of full size, or converted from a MindEye2 checkpoint"
        )
    return {field: found[field] for field in CONVENTIONS}


def check_same(card: dict, where: object, cache: Path, names: Sequence[str] = NAMES) -> None:
    """Raise UserError where what a card says of its towers is not so of ``cache``; what it does not say is not compared.

    ``names``: of the caches that are compared, ``tokens`` among them.
    """
    found = identities(cache, names)
    for field in CONVENTIONS:
        said = (card.get("conventions") or {}).get(field)
        if said is not None and found["tokens"].get(field) != said:
            raise UserError(
                f"{cache / 'tokens.json'}: {field} is {found['tokens'].get(field)!r}; expected {said!r}, the "
                f"convention of {where}"
            )
    for name, wanted in (card.get("towers") or {}).items():
        if name in names or name not in NAMES:
            check_identity(found.get(name, {}), wanted, f"{cache / name}.json", where)


def check_identity(found: dict, wanted: dict, what: object, where: object) -> None:
    """Raise UserError naming the first field in which a tower is not the one that ``where`` was trained with."""
    for field in sorted(set(found) | set(wanted)):
        if field not in _HOW and found.get(field) != wanted.get(field):
            raise UserError(
                f"{what}: {field} is {found.get(field)!r}; expected {wanted.get(field)!r}, with which {where} was trained"
            )


def _identity(seal: Path) -> dict:
    found = read_json(seal).get("identity")
    if not isinstance(found, dict):
        raise UserError(f"{seal}: missing field identity; expected the description of a feature cache")
    return found
