"""Extraction of last-layer features from any torch model.

``extract`` runs a model over data and keeps the input (or the output) of one of its layers, in memory or in a .npy or
.safetensors file. An interrupted run can be resumed, and ``select_batch`` reads the file without a copy.
"""

from lapal_ext.features.extraction import ExtractedFeatures, extract

__all__ = ["ExtractedFeatures", "extract"]
