"""The points modality."""
