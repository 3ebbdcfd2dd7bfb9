"""The video modality."""
