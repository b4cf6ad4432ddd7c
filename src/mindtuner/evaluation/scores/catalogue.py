"""Every score that a run can hold, in one table.

It says what people call it, which way is better, its range, its chance level and the network behind it. The schema, the
scoring, the report and other readers of a run take all of this from here.

A score is one value for each test image. Which of them a run holds stands in its results.json: those of a network that was
not there are missing, and named in ``setting.scores.not_scored``.
"""

from __future__ import annotations

from dataclasses import dataclass

from mindtuner.errors import UserError

ONE_IN_N, ONE_HALF, RANDOM_PAIRS = "one_in_n", "half", "random_pairs"


@dataclass(frozen=True)
class Score:
    """One row of the table.

    ``label`` and ``meaning`` are for people · ``higher_is_better`` · ``low``, ``high``: the range of values ·
    ``chance``: ONE_IN_N, 1 / candidates; ONE_HALF, 0.5; RANDOM_PAIRS, measured for each method on random pairings ·
    ``share``: a share of images or comparisons, which people like in percent · ``network``: the name in
    ``networks.FORMS`` of the one whose layer it compares; None for none, for ``two_way``, whose network the package has, and
    for the words recognised
    """

    part: str
    name: str
    label: str
    meaning: str
    higher_is_better: bool = True
    low: float = 0.0
    high: float = 1.0
    chance: str = ONE_HALF
    share: bool = False
    network: str | None = None


def _two_way(name: str, label: str, layer: str, network: str | None) -> Score:
    return Score("reconstruction", name, label, f"which of two images is it, by {layer}", share=True, network=network)


def _distance(name: str, label: str, layer: str, network: str) -> Score:
    return Score(
        "reconstruction",
        name,
        label,
        f"distance 1 \N{MINUS SIGN} r by {layer}",
        higher_is_better=False,
        high=2.0,
        chance=RANDOM_PAIRS,
        network=network,
    )


def _caption(name: str, label: str, how: str, low: float = 0.0, share: bool = False) -> tuple[Score, Score]:
    return tuple(
        Score(part, name, label, f"the caption {what}, by {how}", low=low, chance=RANDOM_PAIRS, share=share)
        for part, what in (("captions", "read"), ("written", "written"))
    )


def _recognised(name: str, label: str, meaning: str, reader: str = "a probe of EfficientNet-lite2") -> Score:
    return Score("reconstruction", name, label, f"{meaning}, by {reader}", chance=RANDOM_PAIRS, share=True)


SCORES = (
    Score("retrieval", "image", "Image", "the image, from the brain", chance=ONE_IN_N, share=True),
    Score("retrieval", "brain", "Brain", "the brain, from the image", chance=ONE_IN_N, share=True),
    Score("retrieval", "text", "Text", "the caption, from the brain", chance=ONE_IN_N, share=True),
    Score("reconstruction", "pixcorr", "PixCorr", "pixel correlation", low=-1.0, chance=RANDOM_PAIRS),
    Score("reconstruction", "ssim", "SSIM", "structural similarity", low=-1.0, chance=RANDOM_PAIRS),
    _two_way("alexnet2", "AlexNet(2)", "AlexNet's second convolution", "alexnet"),
    _two_way("alexnet5", "AlexNet(5)", "AlexNet's fifth convolution", "alexnet"),
    _two_way("inception", "Inception", "Inception-v3's pooled features", "inception_v3"),
    _two_way("clip", "CLIP", "CLIP ViT-L/14's image embedding", "clip_vit_l14"),
    _distance("efficientnet_b1", "EffNet-B1", "EfficientNet-B1's pooled features", "efficientnet_b1"),
    _distance("swav", "SwAV", "SwAV-ResNet50's pooled features", "swav_resnet50"),
    _two_way("two_way", "Two-way", "EfficientNet-lite2's pooled features", None),
    _recognised("objects", "Objects", "of the things shown, how many are recognised"),
    _recognised("objects_f1", "Objects F1", "things recognised, F1"),
    _recognised("objects_clip", "Objects (CLIP)", "of the things shown, how many are recognised", "CLIP ViT-L/14"),
    _recognised("colours", "Colours", "of the colours shown, how many are recognised"),
    _recognised("places", "Places", "of the places shown, how many are recognised"),
    *_caption("meteor", "METEOR", "words that match, also by stem or synonym", 0.0),
    *_caption("rouge_1", "ROUGE-1", "words that both have", 0.0),
    *_caption("rouge_l", "ROUGE-L", "longest common sequence of words", 0.0),
    *_caption("sentence_bert", "Sentence-BERT", "similarity by all-MiniLM-L6-v2", -1.0),
    *_caption("clip_b", "CLIP-B", "similarity by CLIP ViT-B/32's text tower", -1.0),
    *_caption("clip_l", "CLIP-L", "similarity by CLIP ViT-L/14's text tower", -1.0),
    *_caption("objects", "Objects", "the share of the things shown that it names", share=True),
    *_caption("objects_f1", "Objects F1", "F1 of the things that it names", share=True),
    *_caption("colours", "Colours", "the share of the colours shown that it names", share=True),
    *_caption("places", "Places", "the share of the places shown that it names", share=True),
)
RECOGNISED = {  # what needs captions of training images, and of which kind its words are
    "objects": "objects",
    "objects_f1": "objects",
    "objects_clip": "objects",
    "colours": "colours",
    "places": "places",
}
ALWAYS = {"retrieval": ("image", "brain", "text"), "reconstruction": ("pixcorr", "ssim", "two_way")}  # in every run


def of_part(part: str) -> dict[str, Score]:
    """The scores of one part by name, in the order of the tables.

    Parts are "retrieval", "reconstruction", "captions" (retrieved) and "written" (captions that a network wrote).
    """
    return {score.name: score for score in SCORES if score.part == part}


def find(part: str, name: str, where: str = "score") -> Score:
    """The score of that name. Raises UserError naming ``where`` it stood and the names that there are."""
    known = of_part(part)
    if name not in known:
        raise UserError(f"{where}: {name} is an unknown {part} score; expected one of {', '.join(known)}")
    return known[name]
