"""Every file that the full-size system reads and that others released: source, size, licence, checksum.

Sizes and SHA-256 are those of the repositories at the revisions named here. Where the hub's pages round a size, only the
rounded one stands here (``about``); where no checksum stands here, a fetch takes the one that the hub states.
"""

from __future__ import annotations

from dataclasses import dataclass

MINDEYE2 = "pscotti/mindeyev2"
UNSTATED = "none stated on the hub"


@dataclass(frozen=True)
class WeightFile:
    """``path``: in the weights folder · ``name``: in the repository · ``about``: bytes, exact where ``size`` is given."""

    path: str
    name: str
    about: int
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Weights:
    """Files that are of use only together.

    ``kind``: of repository, model or dataset · ``without``: what cannot be done without them · ``converted``: folder that
    the file becomes, which then replaces it, and its bytes
    """

    name: str
    what: str
    without: str
    repo: str
    kind: str
    revision: str
    licence: str
    files: tuple[WeightFile, ...]
    converted: tuple[str, int] | None = None

    @property
    def source(self) -> str:
        """The repository on the hub, with "datasets/" before it where it is one of data."""
        return f"{'datasets/' if self.kind == 'dataset' else ''}{self.repo}"

    @property
    def about(self) -> int:
        """Bytes of all files together."""
        return sum(file.about for file in self.files)


def _files(folder: str, *rows: tuple[str, int, bool, str | None]) -> tuple[WeightFile, ...]:
    """Rows of name, bytes, whether they are exact, SHA-256."""
    return tuple(
        WeightFile(f"{folder}{name}", name, about, about if exact else None, sha256) for name, about, exact, sha256 in rows
    )


MANIFEST = (
    Weights(
        "openclip",
        "OpenCLIP ViT-bigG-14, laion2b_s39b_b160k: image tokens and text embeddings",
        "no tokens and texts to train on or to score with at the paper's size",
        "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
        "model",
        "main",
        "MIT",
        _files(
            "openclip/",
            (
                "open_clip_pytorch_model.bin",
                10_200_000_000,
                False,
                "0d5318839ad03607c48055c45897c655a14c0276a79f6b867934ddd073760e39",
            ),
        ),
    ),
    Weights(
        "vae",
        "autoencoder of Stable Diffusion image variations: low-level latents",
        "no latents to train the low-level submodule on, and no blurry picture from it",
        "lambdalabs/sd-image-variations-diffusers",
        "model",
        "main",
        "creativeml-openrail-m",
        _files(
            "sd-image-variations/",
            ("vae/config.json", 595, False, None),
            (
                "vae/diffusion_pytorch_model.bin",
                335_000_000,
                False,
                "1b4889b6b1d4ce7ae320a02dedaeff1780ad77d415ea0d744b476155c6377ddc",
            ),
        ),
    ),
    Weights(
        "convnext",
        "VICRegL's ConvNeXt-XL: contrastive low-level targets",
        "no contrastive targets for the low-level submodule",
        MINDEYE2,
        "dataset",
        "main",
        "CC-BY-NC",
        _files(
            "",
            (
                "convnext_xlarge_alpha0.75_fullckpt.pth",
                6_546_149_685,
                True,
                "32187554e4acee79c46ec918145055fe1a4cf14a93983bc5f69ea73163f84f86",
            ),
        ),
    ),
    Weights(
        "unclip",
        "MindEye2's unCLIP checkpoint: pictures from image tokens",
        "no picture is painted from tokens at full size",
        MINDEYE2,
        "dataset",
        "main",
        UNSTATED,
        _files(
            "",
            (
                "unclip6_epoch0_step110000.ckpt",
                17_980_447_939,
                True,
                "6bd7033dee484bba449d243408f36f080ace62b774d0da7894fd898fdf155652",
            ),
        ),
        ("unclip", 10_340_000_000),
    ),  # 2,584,926,187 float32 weights of UNet and autoencoder
    Weights(
        "sdxl",
        "SDXL base 1.0: refinement with corrected semantics",
        "no refined pictures, on which the published scores are computed",
        "stabilityai/stable-diffusion-xl-base-1.0",
        "model",
        "462165984030d82259a11f4367a4eed129e94a7b",
        "openrail++",
        _files(
            "sdxl/",
            ("model_index.json", 609, True, "6d7b93508390ab91ac5bfbe4aeb4dc2d83f7bb1b05fb069d714b5b0c75f70d44"),
            (
                "scheduler/scheduler_config.json",
                479,
                True,
                "af3e45a949aff8b8341ab8b811429ec03fee857a700a1d9477363e4fff9666e2",
            ),
            ("text_encoder/config.json", 565, True, "39b8b2e4b1949e36969caa425b6c81c68bace99198dd9078ce05d16ad401fe7f"),
            (
                "text_encoder/model.safetensors",
                492_000_000,
                False,
                "5c3d6454dd2d23414b56aa1b5858a72487a656937847b6fea8d0606d7a42cdbc",
            ),
            ("text_encoder_2/config.json", 575, True, "a892d1c3a69a7e9247a24de2bc1d5891e3109a54696e53be20093af671072c34"),
            (
                "text_encoder_2/model.safetensors",
                2_780_000_000,
                False,
                "3a6032f63d37ae02bbc74ccd6a27440578cd71701f96532229d0154f55a8d3ff",
            ),
            ("tokenizer/merges.txt", 524_619, True, "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a"),
            (
                "tokenizer/special_tokens_map.json",
                472,
                True,
                "c4864a9376a8401918425bed71fc14fc0e81f9b59ec45c1cf96cccb2df508eac",
            ),
            (
                "tokenizer/tokenizer_config.json",
                737,
                True,
                "19d7b034cb0cc3ce9766c2231373ab8aa8991fc72e2c8f76558bfaae3de0d563",
            ),
            ("tokenizer/vocab.json", 1_059_962, True, "e089ad92ba36837a0d31433e555c8f45fe601ab5c221d4f607ded32d9f7a4349"),
            ("tokenizer_2/merges.txt", 524_619, True, "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a"),
            (
                "tokenizer_2/special_tokens_map.json",
                460,
                True,
                "f118ab3a983206e4f32583448de6bd6aae4ee21869135cef1f5848a753cdaab6",
            ),
            (
                "tokenizer_2/tokenizer_config.json",
                725,
                True,
                "c9d23941f76a41cbd50eda9290f57be7828f0a7a677939e9ef181f7e12bd1bdf",
            ),
            ("tokenizer_2/vocab.json", 1_059_962, True, "e089ad92ba36837a0d31433e555c8f45fe601ab5c221d4f607ded32d9f7a4349"),
            ("unet/config.json", 1_680, True, "30ebc70750223e59006f7f2b4e1e6c102570aa19a9c4ae3e1fbe7591332dbae6"),
            (
                "unet/diffusion_pytorch_model.safetensors",
                10_300_000_000,
                False,
                "357650fbfb3c7b4d94c1f5fd7664da819ad1ff5a839430484b4ec422d03f710a",
            ),
            ("vae/config.json", 642, True, "0b331c8ac22ded5f9997a144a575c1d113d6169aff262c353f39015bd24a6264"),
            (
                "vae/diffusion_pytorch_model.safetensors",
                335_000_000,
                False,
                "1598f3d24932bcfe6634e8b618ea1e30ab1d57f5aad13a6d2de446d2199f2341",
            ),
        ),
    ),
    Weights(
        "git",
        "GIT-large-COCO: captions from image tokens",
        "no caption is written; the retrieved ones remain",
        "microsoft/git-large-coco",
        "model",
        "b644b0b41274649f87de8846fa15f9a22dad7583",
        "MIT",
        _files(
            "git-large-coco/",
            ("config.json", 2_820, False, None),
            ("generation_config.json", 141, False, None),
            ("model.safetensors", 1_580_000_000, False, "b829ce129d49db383baed90ee283087d53b5c916bef2782eefc32e19bef6f42f"),
            ("preprocessor_config.json", 503, False, None),
            ("special_tokens_map.json", 125, False, None),
            ("tokenizer.json", 711_000, False, None),
            ("tokenizer_config.json", 453, False, None),
            ("vocab.txt", 232_000, False, None),
        ),
    ),
    Weights(
        "converter",
        "MindEye2's bigG-to-L converter: image tokens as GIT knows them",
        "no caption is written; the retrieved ones remain",
        MINDEYE2,
        "dataset",
        "main",
        UNSTATED,
        _files(
            "", ("bigG_to_L_epoch8.pth", 7_090_000, False, "2f540faf9665f60ed1107fdb504bd6e35fd4c22d734e90fa3f2b75331eef36cf")
        ),
    ),
)
