"""The byte-pair encoding: every text comes back, and what was trained once is kept."""

import sys

import numpy as np
import pytest

from experiments.lib.data import bpe
from experiments.lib.data.text import load_text
from experiments.lib.runs.errors import BadData

TEXTS = ["the cat sat on the mat", "the hat of the cat"]


def test_without_its_package_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(BadData, match="pip install tokenizers"):
        bpe.kept_or_trained(TEXTS, 300, "cats", tmp_path)
    with pytest.raises(ValueError, match="at least 257, got 256"):
        bpe.kept_or_trained(TEXTS, 256, "cats", tmp_path)


def test_every_text_comes_back_and_no_token_is_that_of_the_end(tmp_path):
    pytest.importorskip("tokenizers")
    encoder = bpe.kept_or_trained(TEXTS, 262, "cats", tmp_path)
    assert encoder.vocab_size == 262
    strange = ["naïve 猫 \t\r\n", "", "<|endoftext|>"]
    tokens = encoder.encode([*TEXTS, *strange])
    for t, original in zip(tokens, [*TEXTS, *strange], strict=True):
        assert encoder.decode(t) == original
        assert ((t > 0) & (t < 262)).all()
    # Five merges of the commonest pairs make the texts shorter than their bytes.
    assert len(tokens[0]) < len(TEXTS[0])
    assert encoder.decode(np.concatenate([tokens[0], [0], tokens[1]])) == "\0".join(TEXTS)
    # So few texts have no thousand pairs.
    assert bpe.kept_or_trained(TEXTS, 1000, "cats", tmp_path).vocab_size < 1000


def test_an_encoding_is_trained_once_for_the_same_texts(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    trainings = []
    train = bpe._train
    monkeypatch.setattr(bpe, "_train", lambda *a: trainings.append(a) or train(*a))
    for texts in (TEXTS, TEXTS, [TEXTS[0] + TEXTS[1][0], TEXTS[1][1:]]):
        bpe.kept_or_trained(texts, 262, "cats", tmp_path)
    assert len(trainings) == 2
    kept = sorted(tmp_path.glob("tokenizers/cats-262-*/tokenizer.json"))
    assert len(kept) == 2
    for path in kept:
        path.write_text("{")
    with pytest.raises(BadData, match="remove it to train anew"):
        bpe.kept_or_trained(TEXTS, 262, "cats", tmp_path)


def test_a_corpus_is_encoded_by_what_its_training_part_taught(tmp_path):
    pytest.importorskip("tokenizers")
    (tmp_path / "books").mkdir()
    for i, content in enumerate([*TEXTS, "the that"]):
        (tmp_path / "books" / f"{i}.txt").write_text(content)
    corpus = load_text(tmp_path / "books", context=2, bpe_size=262, data_dir=tmp_path)
    assert corpus.vocab_size == 262
    assert len(list(tmp_path.glob("tokenizers/books-262-*"))) == 1
    shown = corpus.decode([corpus.train.inputs[0, 0], *corpus.train.targets.ravel()])
    texts = {f"{i}.txt": t for i, t in enumerate([*TEXTS, "the that"])}
    assert "\0".join(texts[d] for d in corpus.train_documents).startswith(shown[:20])
