"""From any torch model to the features that its last layer sees.

``extract`` runs a model over data and catches what goes into one of its layers (or comes out of it), in memory or in a
.npy or .safetensors file that an interrupted run goes on with, and that ``select_batch`` reads where it is.
"""

from lapal_ext.features.extraction import ExtractedFeatures, extract

__all__ = ["ExtractedFeatures", "extract"]
