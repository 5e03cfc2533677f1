"""A plain convolutional encoder: small enough to be trained on a few thousand recordings."""

from encoders.cnn.configuration import CnnConfig
from encoders.cnn.modeling import CnnEncoder, varied

__all__ = ["CnnConfig", "CnnEncoder", "varied"]
