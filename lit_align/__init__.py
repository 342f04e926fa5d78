"""lit_align: aligning language models with human and AI preferences, on PyTorch Lightning."""

__version__ = "0.1.0"
