"""prefine refines a language model from human preferences, end to end, on one person's hardware."""

__version__ = "0.1.0"
