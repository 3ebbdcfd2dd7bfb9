"""Signals from .npy and .wav files, and scenes of the shapes world as signals.

A scene becomes nine slots of time, one per place, read like a page: an object is a tone in its place's slot, its
colour the pitch, its shape the timbre, its size the loudness. So all that a caption says can be heard.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from multicoca.data.shapes.scene import COLORS, PLACES, SIZES, Scene
from multicoca.modality import UnreadableFileError

_SLOT = 256  # samples, 32 ms at 8 kHz
_PITCHES_HZ = {color: 200 * 1.4**index for index, color in enumerate(COLORS)}  # 200 to 1506
_TIMBRES: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # phase in cycles -> wave in [-1, 1]
    "ball": lambda phase: np.sin(2 * np.pi * phase),
    "cube": lambda phase: np.sign(np.sin(2 * np.pi * phase)),
    "cone": lambda phase: 2 * (phase % 1) - 1,
    "ring": lambda phase: 2 * np.abs(np.sin(np.pi * phase)) - 1,
    "cross": lambda phase: np.where(phase % 1 < 0.15, 1.0, -0.15),
}


@dataclass(frozen=True)
class SignalProcessor:
    """See `multicoca.modality.Processor` and `SceneRenderer`; longer signals lose their end in evaluation."""

    rate_hz: int = 8000
    max_samples: int = 8192

    suffixes: ClassVar[tuple[str, ...]] = (".npy", ".wav")
    scene_suffix: ClassVar[str] = ".npy"
    scene_facts: ClassVar[frozenset[str]] = frozenset()

    def decode(self, file: Path | bytes, suffix: str = "") -> np.ndarray:
        """Returns float32 [samples]; raises UnreadableFileError with the reason."""
        try:
            data = file if isinstance(file, bytes) else file.read_bytes()
            if data[:4] == b"RIFF":
                signal = self._read_wav(data)
            else:
                signal = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        except (OSError, EOFError, ValueError, wave.Error) as error:
            raise UnreadableFileError(f"not a readable .npy or .wav file: {error}") from error
        if signal.ndim != 1 or signal.size == 0 or signal.dtype.kind != "f" or not np.isfinite(signal).all():
            raise UnreadableFileError(f"expected finite floats [samples], got {signal.dtype} {list(signal.shape)}")
        return signal.astype(np.float32)

    def preprocess(self, raw: np.ndarray, train: bool, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns {"signal": float32 [samples]}: a random stretch in training, the beginning otherwise."""
        spare = max(0, len(raw) - self.max_samples)
        start = int(torch.randint(spare + 1, (), generator=generator)) if train else 0
        return {"signal": torch.from_numpy(raw[start : start + self.max_samples].copy())}

    def collate(self, samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Returns {"signal": [batch, samples], "mask": bool [batch, samples]}, padded with zeros at the end."""
        signals = [sample["signal"] for sample in samples]
        masks = [torch.ones(len(signal), dtype=torch.bool) for signal in signals]
        pad = torch.nn.utils.rnn.pad_sequence
        return {"signal": pad(signals, batch_first=True), "mask": pad(masks, batch_first=True)}

    def thumbnail(self, raw: np.ndarray) -> Image.Image:
        """Draws the loudest value of each of up to 160 stretches as a bar."""
        peaks = np.array([np.abs(stretch).max() for stretch in np.array_split(raw, min(160, len(raw)))])
        heights = np.abs(np.linspace(-1, 1, 64))[:, None]
        return Image.fromarray(np.where(heights <= peaks / max(peaks.max(), 1e-6), 40, 255).astype(np.uint8)).convert(
            "RGB"
        )

    def render(self, scene: Scene) -> bytes:
        """Returns a .npy file in which each object sounds in the slot of its place."""
        rng = np.random.default_rng((*scene.seed, 11))
        signal = rng.normal(0, 0.01, 9 * _SLOT + int(rng.integers(2 * _SLOT)))  # lengths differ, as in real data
        places = [place for row in PLACES for place in row]
        for target in scene.objects:
            start = places.index(target.place) * _SLOT
            cycles = _PITCHES_HZ[target.color] * rng.uniform(0.97, 1.03) / self.rate_hz * np.arange(_SLOT)
            loudness = SIZES[target.size] / max(SIZES.values()) * rng.uniform(0.9, 1.0)
            signal[start : start + _SLOT] += loudness * _TIMBRES[target.shape](cycles + rng.random())
        file = io.BytesIO()
        np.save(file, signal.astype(np.float32))
        return file.getvalue()

    def _read_wav(self, data: bytes) -> np.ndarray:
        with wave.open(io.BytesIO(data)) as reader:
            if (reader.getsampwidth(), reader.getframerate()) != (2, self.rate_hz):
                got = f"{8 * reader.getsampwidth()} bit at {reader.getframerate()} Hz"
                raise UnreadableFileError(f"the .wav file has {got}; convert it to 16 bit at {self.rate_hz} Hz")
            frames = np.frombuffer(reader.readframes(reader.getnframes()), "<i2")
            return frames.reshape(-1, reader.getnchannels()).mean(axis=1) / 32768
