"""Which towers a cache is of: those that the package carries, or those of full size that ``embed --towers paper`` ran.

What the towers say of images is what a base learns to say, so base, cache and generator must mean the same by it. A cache
tells its towers by their identities; they go onto the cards of what is trained on it, and are compared there, field by field.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from mindtuner.errors import UserError

if TYPE_CHECKING:
    from mindtuner.config import ModelConfig
    from mindtuner.data import Stimuli
    from mindtuner.training import Targets

COMPACT = "compact"
CONVENTIONS = ("token_norm", "image_range")
_FIELDS = {
    "tokens": ("tokens", "width"),
    "text": ("text_width",),
    "latents": ("latent_channels", "latent_side"),
    "features": ("feature_positions", "feature_width"),
}  # of the model's config: the shape of an image's
_HOW = ("dtype",)  # how a tower computed, not what: bases and caches may differ in it


def names() -> tuple[str, ...]:
    """The caches that training needs."""
    from mindtuner.training import Targets

    return tuple(field.name for field in dataclasses.fields(Targets))


def is_full_size(cache: Path) -> bool:
    """Whether the tokens in ``cache`` are of other towers than the package's own. Raises UserError where nothing tells."""
    seal = cache / "tokens.json"
    return seal.exists() and _identity(seal).get("encoder") != COMPACT


def identities(cache: Path) -> dict[str, dict]:
    """The identity of the tower behind each cache that training needs. Raises UserError where one is missing."""
    return {name: _identity(cache / f"{name}.json") for name in names()}


def sizes(cache: Path) -> dict[str, int]:
    """What a model's config has to say for these caches. Raises UserError where one is missing or is not one."""
    from mindtuner.files import read_json

    found = {}
    for name, fields in _FIELDS.items():
        shape = read_json(cache / f"{name}.json").get("shape")
        if not isinstance(shape, list) or len(shape) <= len(fields):
            raise UserError(f"{cache / name}.json: shape is {shape}; expected the description of a feature cache")
        found.update(zip(fields, shape[1:], strict=False))
    return found


def check_sizes(config: ModelConfig, where: object, wanted: dict[str, int], origin: str) -> None:
    """Raise UserError where a model is not made for what the towers give."""
    for field, value in wanted.items():
        if getattr(config, field) != value:
            raise UserError(f"{where}: model.{field} is {getattr(config, field)}; expected {value}, which {origin} give")


def stored_targets(cache: Path, stimuli: Stimuli) -> Targets:
    """What is in ``cache``, whatever towers made it. Raises UserError where one is missing or of other stimuli."""
    from mindtuner.data import open_cache
    from mindtuner.training import Targets

    return Targets(**{name: open_cache(cache, name, identity, stimuli.hash) for name, identity in identities(cache).items()})


def conventions_of(card: dict, where: object) -> dict[str, str]:
    """token_norm and image_range of the tokens that a base speaks. Raises UserError where its card does not say."""
    found = card.get("conventions")
    if not isinstance(found, dict) or not all(isinstance(found.get(field), str) for field in CONVENTIONS):
        raise UserError(
            f"{where}: card has no conventions; expected token_norm and image_range, as a base has that was "
            "trained on a cache of embed --towers paper, or converted from a MindEye2 checkpoint"
        )
    return {field: found[field] for field in CONVENTIONS}


def facts(cache: Path) -> dict:
    """What a card says of the towers that its targets come from."""
    towers = identities(cache)
    said = {field: towers["tokens"][field] for field in CONVENTIONS if field in towers["tokens"]}
    return {"towers": towers, **({"conventions": said} if said else {})}


def check_same(card: dict, where: object, cache: Path) -> None:
    """Raise UserError where what a card says of its towers is not so of ``cache``; what it does not say is not compared."""
    found = identities(cache)
    for field in CONVENTIONS:
        said = (card.get("conventions") or {}).get(field)
        if said is not None and found["tokens"].get(field) != said:
            raise UserError(
                f"{cache / 'tokens.json'}: {field} is {found['tokens'].get(field)!r}; expected {said!r}, the "
                f"convention of {where}"
            )
    for name, wanted in (card.get("towers") or {}).items():
        check_identity(found.get(name, {}), wanted, f"{cache / name}.json", where)


def check_identity(found: dict, wanted: dict, what: object, where: object) -> None:
    """Raise UserError naming the first field in which a tower is not the one that ``where`` was trained with."""
    for field in sorted(set(found) | set(wanted)):
        if field not in _HOW and found.get(field) != wanted.get(field):
            raise UserError(
                f"{what}: {field} is {found.get(field)!r}; expected {wanted.get(field)!r}, with which {where} was trained"
            )


def _identity(seal: Path) -> dict:
    from mindtuner.files import read_json

    found = read_json(seal).get("identity")
    if not isinstance(found, dict):
        raise UserError(f"{seal}: missing field identity; expected the description of a feature cache")
    return found
