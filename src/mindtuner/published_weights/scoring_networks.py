"""The networks that look at pictures and captions for the scores, from where their authors keep them: list and fetch.

The folder that is filled is that of ``--networks``. Files of download.pytorch.org have the first digits of their SHA-256 in
their names, the hub states whole checksums, and for SwAV's no checksum is published: it is read through as tensors when it
has come, as all of them are.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import torch
from huggingface_hub import HfApi, constants, hf_hub_url
from safetensors.torch import save_file

from mindtuner import download
from mindtuner.claims import alone
from mindtuner.errors import UserError
from mindtuner.files import atomic_path
from mindtuner.runtime import progress
from mindtuner.thirdparty import read_state_dict

WEIGHTS, OLDER_WEIGHTS = "model.safetensors", "pytorch_model.bin"


@dataclass(frozen=True)
class NetworkFile:
    """A network's weights, one file at a URL.

    ``digest``: the first digits of the SHA-256, empty where its authors publish none · ``about``: bytes
    """

    name: str
    url: str
    digest: str
    about: int
    licence: str


@dataclass(frozen=True)
class NetworkFolder:
    """A model on the hub: these ``names``, and its weights."""

    name: str
    repo: str
    about: int
    licence: str
    names: tuple[str, ...] = (
        "config.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    )


_OF_CLIP = "MIT with OpenAI's code; its model card speaks against deployment"


def _of_torchvision(name: str, about: int) -> NetworkFile:
    digest = Path(name).stem.rpartition("-")[2]
    return NetworkFile(
        name,
        f"https://download.pytorch.org/models/{name}",
        digest,
        about,
        "BSD 3-Clause with torchvision; the training data's terms (ImageNet) may hold",
    )


NETWORKS: tuple[NetworkFile | NetworkFolder, ...] = (
    _of_torchvision("alexnet-owt-7be5be79.pth", 233_000_000),
    _of_torchvision("inception_v3_google-0cc3c7bd.pth", 104_000_000),
    _of_torchvision("efficientnet_b1-c27df63c.pth", 30_000_000),
    NetworkFile(
        "swav_800ep_pretrain.pth.tar",
        "https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar",
        "",
        100_000_000,
        "that of facebookresearch/swav; read it before any commercial use",
    ),
    NetworkFolder("clip-vit-large-patch14", "openai/clip-vit-large-patch14", 1_700_000_000, _OF_CLIP),
    NetworkFolder("clip-vit-base-patch32", "openai/clip-vit-base-patch32", 600_000_000, _OF_CLIP),
)


def listing(networks: tuple[NetworkFile | NetworkFolder, ...]) -> str:
    """Name, size, source and licence of each, a line each."""
    return "\n".join(
        f"{network.name:<34}{'about ' + download.in_words(network.about):>15}  "
        f"{network.url if isinstance(network, NetworkFile) else f'the hub, {network.repo}'} "
        f"({network.licence})"
        for network in networks
    )


def choose(only: list[str] | None) -> tuple[NetworkFile | NetworkFolder, ...]:
    """The networks of these names, all for None. Raises UserError for a name that there is not."""
    known = {network.name: network for network in NETWORKS}
    for name in only or ():
        if name not in known:
            raise UserError(f"only: is {name!r}; expected some of {', '.join(known)}")
    return NETWORKS if only is None else tuple(known[name] for name in known if name in only)


def fetch(out: str | Path, networks: tuple[NetworkFile | NetworkFolder, ...]) -> None:
    """Bring these networks into the folder ``out``; what is there already stays.

    Raises UserError without room, network or permission, for a file with another checksum, or that is no file of tensors, and
    where another process fetches into the same folder.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; expected a folder for the networks")
    download.check_space(out, sum(network.about for network in networks if not (out / network.name).exists()))
    try:
        with alone(out):
            for network in networks:
                if isinstance(network, NetworkFolder):
                    _fetch_folder(out / network.name, network)
                elif not (out / network.name).exists():
                    _fetch_file(out / network.name, network)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror or error}); expected free space and write permission"
        ) from error


def _fetch_file(target: Path, file: NetworkFile) -> None:
    with atomic_path(target) as part:
        try:
            torch.hub.download_url_to_file(file.url, str(part), file.digest or None, sys.stderr.isatty())
        except (URLError, ConnectionError, TimeoutError) as error:
            raise UserError(
                f"{file.url}: not to be had ({getattr(error, 'reason', error)}); expected a network and a server that has it"
            ) from error
        except RuntimeError as error:
            raise UserError(
                f"{file.url}: what arrived has another checksum; expected one that begins with {file.digest} "
                "(the same command fetches it again)"
            ) from error
        read_state_dict(part, f"the whole of {file.url}")


def _fetch_folder(folder: Path, model: NetworkFolder) -> None:
    """``download`` resumes and verifies. Weights that the hub has in PyTorch's own format alone are kept as safetensors."""
    weights = WEIGHTS if _on_the_hub(model.repo, WEIGHTS) else OLDER_WEIGHTS
    wanted = [name for name in (*model.names, weights) if not (folder / name).exists()]
    if weights != WEIGHTS and (folder / WEIGHTS).exists():
        wanted.remove(weights)
    for name in wanted:
        url = _url(model.repo, name)
        at = download.describe(url, name)
        folder.mkdir(exist_ok=True)
        part = folder / f".{at.checksum}.part"
        with progress((), f"{model.name} {name}", total=at.size, unit="B") as bar:
            bar.unit_scale = True
            download.bring(url, folder / name, part, at, bar)
    if weights in wanted and weights != WEIGHTS:
        older = folder / weights
        found = read_state_dict(older, f"{model.repo}'s weights")
        with atomic_path(folder / WEIGHTS) as path:  # clones, as safetensors refuses tensors that share memory
            save_file({name: tensor.clone() for name, tensor in found.items()}, path, metadata={"format": "pt"})
        os.remove(older)


def _on_the_hub(repo: str, name: str) -> bool:
    return download.persist(lambda: HfApi(endpoint=constants.ENDPOINT).file_exists(repo, name), _url(repo, name), retries=2)


def _url(repo: str, name: str) -> str:
    return hf_hub_url(repo, name, endpoint=constants.ENDPOINT)
