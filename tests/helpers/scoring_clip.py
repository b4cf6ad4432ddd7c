"""A small CLIP of random weights, in the form of ViT-L/14's folder, and what transformers' own model makes of it."""

import torch
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPTokenizer

VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 56,
    "image_size": 224,
    "projection_dim": 16,
}
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


def write_clip(folder):
    """Both towers and a tokenizer that knows letters."""
    torch.manual_seed(0)
    letters = [chr(code) for code in range(97, 123)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": VISION["projection_dim"],
        "vocab_size": len(words),
        "bos_token_id": 52,
        "eos_token_id": 53,
        "pad_token_id": 53,
        "max_position_embeddings": 77,
    }
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=VISION["projection_dim"])
    CLIPModel(config).save_pretrained(folder)
    CLIPTokenizer(vocab={word: k for k, word in enumerate(words)}, merges=[], model_max_length=77).save_pretrained(folder)


@torch.no_grad()
def cosines(folder, pictures, prompts):
    """Of pictures, uint8 (n, 3, H, W), and prompts, by transformers' own model of both towers: float (n, prompts)."""
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    pixels = torch.from_numpy(pictures).float() / 255
    pixels = torch.nn.functional.interpolate(pixels, (224, 224), mode="bilinear", antialias=True)
    words = tokenizer(prompts, return_tensors="pt", padding=True)
    found = model(**words, pixel_values=(pixels - MEAN) / STD)
    return (found.image_embeds @ found.text_embeds.T).numpy()
