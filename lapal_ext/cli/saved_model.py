"""A saved model with the temperature of its probabilities, which is in a file of its own.

The temperature of ``model`` is in ``model.temperature.json``, with the checksum of the file that it belongs to: a
process that is killed between the two leaves a temperature that is not taken for that of the new model.
"""

import hashlib
import json
from pathlib import Path

from lapal_ext.atomic_file import replace_file
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace


def save_model(model: LastLayerLaplace, temperature: float | None, path: Path) -> None:
    """Write both files; without a temperature only the first, and the second one is deleted."""
    model.save(path)
    if temperature is None:
        _beside(path).unlink(missing_ok=True)
        return
    text = json.dumps({"temperature": temperature, "model": _checksum(path)}, indent=1) + "\n"
    replace_file(_beside(path), lambda scratch: scratch.write_text(text, encoding="utf-8"))


def load_model(path: Path) -> tuple[LastLayerLaplace, float | None]:
    """The model and its temperature, which is None if there is no file of it that belongs to the model."""
    model = LastLayerLaplace.load(path)
    try:
        saved = json.loads(_beside(path).read_bytes())
        known = saved["model"] == _checksum(path)
        return model, float(saved["temperature"]) if known else None
    except (OSError, ValueError, KeyError, TypeError):
        return model, None


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.temperature.json")


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
