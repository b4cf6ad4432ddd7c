"""The prompt that corrects a picture: what the Pivot says of a brain, in words."""

from __future__ import annotations

import numpy as np

from mindtuner.data.hold_out import shows
from mindtuner.decoding.phrases import TextEncoder
from mindtuner.decoding.words import TextBank, Words

COCO_CATEGORIES = (  # the 80 kinds of object that COCO's annotators marked; NSD's images are COCO's
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "truck",
    "boat",
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "bench",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "backpack",
    "umbrella",
    "handbag",
    "tie",
    "suitcase",
    "frisbee",
    "skis",
    "snowboard",
    "sports ball",
    "kite",
    "baseball bat",
    "baseball glove",
    "skateboard",
    "surfboard",
    "tennis racket",
    "bottle",
    "wine glass",
    "cup",
    "fork",
    "knife",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "carrot",
    "hot dog",
    "pizza",
    "donut",
    "cake",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "laptop",
    "mouse",
    "remote",
    "keyboard",
    "cell phone",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy bear",
    "hair drier",
    "toothbrush",
)


PHOTO = "a photo of "


def category_bank(encoder: TextEncoder, categories: tuple[str, ...] = COCO_CATEGORIES) -> TextBank:
    """Category prompts and their embeddings. They name kinds of things and no image, so no test image can leak in."""
    prompts = [f"{PHOTO}{_article(name)}{name}" for name in categories]
    return TextBank(prompts, encoder.embed(prompts), 0)


def prompts_of(words: Words, categories: TextBank, top_categories: int = 2) -> list[str]:
    """One prompt for each brain: the sentence of its phrases, then the category prompts nearest to its text.

    A category that the sentence names already is not said again. Without composed phrases it is ``build_prompts``.

    Parameters
    ----------
    words : Words
    categories : TextBank
        Of ``category_bank``.
    top_categories : int

    Returns
    -------
    list of n str
    """
    if words.said is None:
        return build_prompts(words.text, categories, words.bank)
    prompts = []
    for sentence, text in zip(words.prompts, words.text, strict=True):
        kinds = [category.removeprefix(PHOTO).removeprefix("an ").removeprefix("a ") for category in categories.captions]
        new = [not shows([sentence], kind) for kind in kinds]
        nearest = np.argsort(-(categories.embeddings @ text), kind="stable")[:top_categories]
        prompts.append(", ".join(filter(None, [sentence, *(categories.captions[k] for k in nearest if new[k])])))
    return prompts


def build_prompts(
    text: np.ndarray, categories: TextBank, captions: TextBank, top_categories: int = 2, top_captions: int = 1
) -> list[str]:
    """One prompt for each brain of whole captions: the category prompts nearest to its text, then the nearest captions.

    The MindTuner paper corrects pictures with text retrieved through the Pivot and gives no form of words; this one is
    ours. What is nearest comes first, as SDXL's text towers read 77 tokens and cut off the rest.

    Parameters
    ----------
    text : (n, d) unit vectors in the text tower's space, ``Predictions.text``
    categories : of ``category_bank``
    captions : of training images, ``TextBank.of``
    top_categories, top_captions : how many of each; equal similarities keep the bank's order, and what says the same
        but for case and a final full stop is said once

    Raises ValueError where both numbers are 0 or one is negative.
    """
    if min(top_categories, top_captions) < 0 or top_categories + top_captions == 0:
        raise ValueError(f"top_categories, top_captions: are {top_categories}, {top_captions}; expected at least 1 together")
    prompts = []
    for one in text:
        said: dict[str, str] = {}
        for bank, count in ((categories, top_categories), (captions, top_captions)):
            for phrase in _nearest(one, bank, count, said):
                said[phrase.lower()] = phrase
        prompts.append(", ".join(said.values()))
    return prompts


def _nearest(text: np.ndarray, bank: TextBank, count: int, said: dict[str, str]) -> list[str]:
    """The ``count`` nearest phrases of the bank that say something new; fewer where it has not as many."""
    new: dict[str, str] = {}
    if count:
        for k in np.argsort(-(bank.embeddings @ text), kind="stable"):
            phrase = " ".join(bank.captions[k].split()).rstrip(" .")
            if phrase and phrase.lower() not in said:
                new.setdefault(phrase.lower(), phrase)
            if len(new) == count:
                break
    return list(new.values())


def _article(name: str) -> str:
    """The article "a " or "an ", or nothing before a plural such as scissors, but not before a bus or a glass."""
    if name.endswith("s") and not name.endswith(("us", "ss")):
        return ""
    return "an " if name[0] in "aeiou" else "a "
