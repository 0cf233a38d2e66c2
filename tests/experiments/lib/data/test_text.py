"""Text corpora: every document in one part, unreadable files named."""

import gzip

import numpy as np
import pytest

from experiments.lib.data import text
from experiments.lib.runs.errors import BadData


@pytest.fixture
def folder(tmp_path):
    """Ten documents of different letters and lengths, one of them in a subfolder and packed."""
    books = tmp_path / "books"
    (books / "more").mkdir(parents=True)
    for i in range(9):
        (books / f"{i}.txt").write_text(chr(97 + i) * (5 + i))
    (books / "more" / "9.txt.gz").write_bytes(gzip.compress(b"j" * 14))
    (books / ".hidden").write_bytes(b"\0")
    (books / "empty.txt").touch()
    return books


def test_the_split_is_by_document_and_by_the_seed(folder):
    corpus = text.load_text(folder, context=3, test_fraction=0.3, seed=0)
    names = sorted(corpus.train_documents + corpus.test_documents)
    assert names == [f"{i}.txt" for i in range(9)] + ["more/9.txt.gz"]
    assert len(corpus.test_documents) == 3
    for windows, documents in (
        (corpus.train, corpus.train_documents),
        (corpus.test, corpus.test_documents),
    ):
        numbers = [int(document.split("/")[-1][0]) for document in documents]
        expected = "".join(chr(97 + i) * (5 + i) + "\0" for i in numbers)
        shown = corpus.decode([windows.inputs[0, 0], *windows.targets.ravel()])
        # All but what does not fill a window.
        assert expected.startswith(shown)
        assert len(expected) - len(shown) < 3
    other = text.load_text(folder, context=3, test_fraction=0.3, seed=1)
    assert other.test_documents != corpus.test_documents


def test_bytes_are_those_of_utf8_whatever_the_encoding(folder):
    for name, encoding in (("0.txt", "latin-1"), ("1.txt", "latin-1")):
        (folder / name).write_text("é", encoding=encoding)
    corpus = text.load_text(folder, context=1, pattern="[01].txt", encoding="latin-1")
    assert corpus.vocab_size == 256
    np.testing.assert_array_equal(corpus.train.inputs, [[0xC3], [0xA9]])
    np.testing.assert_array_equal(corpus.train.targets, [[0xA9], [0]])
    assert corpus.decode([0xC3, 0xA9, 0]) == "é\0"


def test_what_is_no_text_is_named(folder):
    def refused(message, error=BadData, **options):
        with pytest.raises(error, match=message) as caught:
            text.load_text(folder, **{"context": 3} | options)
        assert "\n" not in str(caught.value)

    (folder / "5.txt").write_bytes(b"ab\xe9d")
    refused(r"5\.txt is no text in utf-8: .* at byte 2; give its encoding")
    (folder / "5.txt").write_text("zero", encoding="utf-16")
    refused(r"5\.txt is no text in utf-8")
    (folder / "5.txt").write_bytes("zero".encode("utf-16-le"))
    refused(r"5\.txt has zero bytes")
    (folder / "5.txt").write_bytes(gzip.compress(b"j" * 14)[:-3])
    refused(r"5\.txt cannot be read")
    refused(r"has 1 text files 4\.txt; a split by document needs two", pattern="4.txt")
    (folder / "5.txt").unlink()
    refused("the training documents of .* a window takes 1001", context=1000)
    refused("the test documents of", context=20)
    refused("no encoding 'utf-9'", ValueError, encoding="utf-9")
    refused("context must be at least 1, got 0", ValueError, context=0)
