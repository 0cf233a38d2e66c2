"""A byte-pair encoding trained on the spot, and kept: a resumed run has the same one.

Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units", 2016,
on bytes (Radford et al., 2019), so that every text has an encoding; by the package `tokenizers`.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.data.storage import appear, data_directory
from experiments.lib.runs.errors import BadData
from experiments.lib.runs.paths import is_remote

# The bytes, and token 0, which ends a document.
SMALLEST = 257


class Encoder:
    """Texts to tokens and back.

    Attributes:
      vocab_size: the number of tokens; fewer than asked for if the text has no more pairs.
    """

    def __init__(self, tokenizer: Any):
        """Takes a `tokenizers.Tokenizer`; its tokens are counted from 1 here."""
        # Token 0 is ours, not a special token of the tokenizer: it would be found in texts too.
        self._tokenizer = tokenizer
        self.vocab_size = tokenizer.get_vocab_size() + 1

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each text, (k,) int32, none of them 0."""
        encoded = self._tokenizer.encode_batch(list(texts))
        return [np.array(e.ids, np.int32) + 1 for e in encoded]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; a zero character stands for token 0."""
        documents: list[list[int]] = [[]]
        for token in tokens:
            if token:
                documents[-1].append(int(token) - 1)
            else:
                documents.append([])
        return "\0".join(self._tokenizer.decode(document) for document in documents)


def kept_or_trained(
    texts: Sequence[str], size: int, name: str, data_dir: str | os.PathLike[str] | None = None
) -> Encoder:
    """The encoding kept in the data directory for exactly these texts, or one trained and kept.

    Args:
      texts: what to train on.
      size: tokens, at least 257.
      name: the beginning of its folder's name; the rest is the size and a checksum of the texts.
      data_dir: as `experiments.lib.data.storage.data_directory` takes it.

    Raises:
      BadData: the package is not installed, the directory is in a bucket, or the kept file is
        damaged.
    """
    if size < SMALLEST:
        raise ValueError(f"bpe_size must be at least {SMALLEST}, got {size}")
    tokenizers = _package()
    directory = data_directory(data_dir)
    if is_remote(directory):
        raise BadData(f"{directory} is in a bucket; name a folder here to keep the encoding in")
    folder = directory / "tokenizers" / f"{name}-{size}-{_checksum(texts)[:16]}"
    if not folder.exists():
        directory.mkdir(parents=True, exist_ok=True)
        trained = _train(tokenizers, texts, size)
        appear(folder, directory, lambda work: trained.save(str(work / "tokenizer.json")))
    # Read back in any case: another process may have been quicker.
    path = Path(folder, "tokenizer.json")
    try:
        return Encoder(tokenizers.Tokenizer.from_file(str(path)))
    except Exception as error:  # the package raises no narrower class
        raise BadData(f"{path} cannot be read; remove it to train anew: {error}") from error


def _package() -> Any:
    try:
        return importlib.import_module("tokenizers")
    except ImportError as error:
        raise BadData(
            "a byte-pair encoding needs the package tokenizers: pip install tokenizers"
        ) from error


def _train(tokenizers: Any, texts: Sequence[str], size: int) -> Any:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size - 1,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _checksum(texts: Sequence[str]) -> str:
    found = hashlib.sha256()
    for text in texts:
        content = text.encode()
        found.update(len(content).to_bytes(8, "big") + content)
    return found.hexdigest()
