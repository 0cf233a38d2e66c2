"""Text corpora: a folder of text files as windows of tokens, split by document.

    corpus = load_text("books", context=64)                  # bytes: 256 tokens
    corpus = load_text("books", context=64, bpe_size=4096)   # byte-pair encoding, trained here
    corpus.train.inputs, corpus.train.targets                # (n, 64) int32 each

Every file is a document, and token 0 stands behind each: no text has a zero byte. The documents
of a part follow each other in the order of their names; windows may run over their ends.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.lib.data.held_back import split_rows
from experiments.lib.data.windows import Windows, cut_windows, join
from experiments.lib.runs.errors import BadData


class Corpus(NamedTuple):
    """A text corpus.

    Attributes:
      train: windows of the documents trained on.
      test: windows of those held back.
      vocab_size: all tokens are smaller.
      train_documents: names of the files, relative to the folder.
      test_documents: the same of those held back.
      decode: from tokens, (k,) integers, to text, in which a zero character ends a document.
    """

    train: Windows
    test: Windows
    vocab_size: int
    train_documents: tuple[str, ...]
    test_documents: tuple[str, ...]
    decode: Callable[[Iterable[int]], str]


def load_text(
    folder: str | os.PathLike[str],
    *,
    context: int,
    bpe_size: int | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
    pattern: str = "**/*",
    encoding: str = "utf-8",
    data_dir: str | os.PathLike[str] | None = None,
) -> Corpus:
    """Reads a folder of text files, gzipped or not; hidden and empty ones do not count.

    Args:
      folder: of the files, at any depth.
      context: tokens in a window.
      bpe_size: size of the vocabulary of a byte-pair encoding, trained on the training documents
        and kept in `data_dir` (see `experiments.lib.data.bpe`); default the bytes of UTF-8.
      test_fraction: this part of the documents is held back.
      seed: of the choice of these.
      pattern: which files, as `pathlib.Path.glob` takes it; `**/*.txt`.
      encoding: of the files.
      data_dir: as `experiments.lib.data.storage.data_directory` takes it; for the encoding alone.

    Raises:
      BadData: there are fewer than two documents, or one is no text in this encoding (the message
        names it), or a part is shorter than a window.
    """
    if context < 1:
        raise ValueError(f"context must be at least 1, got {context}")
    folder = Path(folder).expanduser()
    documents = dict(_documents(folder, pattern, encoding))
    if len(documents) < 2:
        raise BadData(
            f"{folder} has {len(documents)} text files {pattern}; a split by document needs two"
        )
    names = list(documents)
    rows = split_rows(len(names), test_fraction, seed, f"documents of {folder}")
    train_names, test_names = (tuple(names[i] for i in part) for part in rows)
    train, test = ([documents[name] for name in part] for part in (train_names, test_names))
    if bpe_size is None:
        vocab_size, encode, decode = 256, _bytes, _text
    else:
        from experiments.lib.data import bpe

        encoder = bpe.kept_or_trained(train, bpe_size, folder.resolve().name, data_dir)
        vocab_size, encode, decode = encoder.vocab_size, encoder.encode, encoder.decode
    return Corpus(
        cut_windows(join(encode(train)), context, f"the training documents of {folder}"),
        cut_windows(join(encode(test)), context, f"the test documents of {folder}"),
        vocab_size,
        train_names,
        test_names,
        decode,
    )


def _documents(folder: Path, pattern: str, encoding: str) -> Iterable[tuple[str, str]]:
    for path in sorted(folder.glob(pattern)):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts) or not path.is_file():
            continue
        try:
            content = path.read_bytes()
            if content[:2] == b"\x1f\x8b":
                content = gzip.decompress(content)
            text = content.decode(encoding)
        except (OSError, EOFError, zlib.error) as error:
            raise BadData(f"{path} cannot be read: {error}") from error
        except UnicodeDecodeError as error:
            raise BadData(
                f"{path} is no text in {encoding}: {error.reason} at byte {error.start}; give its "
                "encoding, or a pattern that leaves it out"
            ) from error
        except LookupError as error:
            raise ValueError(f"there is no encoding {encoding!r}") from error
        if "\0" in text:
            raise BadData(f"{path} has zero bytes: no text, or one in another encoding")
        if text:
            yield name.as_posix(), text


def _bytes(texts: Sequence[str]) -> list[np.ndarray]:
    return [np.frombuffer(text.encode(), np.uint8) for text in texts]


def _text(tokens: Iterable[int]) -> str:
    return bytes(int(t) for t in tokens).decode(errors="replace")
