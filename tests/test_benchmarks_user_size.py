"""The networks of user size, and what the page says of them."""

import signal
import subprocess

import jax
import numpy as np
import pytest

from benchmarks import _user_sizes, user_size
from benchmarks.peers import first_answers, user_models

MILLIONS = {"resnet": 11.2, "gpt": 7.4, "vit": 5.4}


@pytest.mark.parametrize("name", user_models.NAMES)
def test_sizes_are_those_stated(name):
    params = user_models.module(name).params()
    size = sum(a.size for a in jax.tree.leaves(params))
    assert round(size / 1e6, 1) == MILLIONS[name]
    # The processes begin with what is read back.
    assert {a.dtype for a in jax.tree.leaves(params)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", user_models.NAMES)
def test_a_file_has_what_was_trained(name, tmp_path, monkeypatch):
    monkeypatch.setattr(user_models, "FOLDER", tmp_path)
    monkeypatch.setattr(user_models, "trained", lambda name, params, batch: params)
    params, (x, y) = user_models.read(user_models.prepared(name, small=True))
    jax.tree.map(np.testing.assert_array_equal, params, user_models.module(name).params(small=True))
    logits = jax.eval_shape(user_models.module(name).apply, params, x)
    assert logits.shape[:-1] == y.shape


def test_a_token_sees_those_before_it_alone():
    gpt = user_models.module("gpt")
    params, (ids, _) = gpt.params(small=True), gpt.batch(small=True)
    before = gpt.apply(params, ids)
    after = gpt.apply(params, np.where(np.arange(ids.shape[1]) == 5, ids + 1, ids) % 64)
    moved = np.abs(np.asarray(after - before)).max((0, 2)) > 0
    assert moved.tolist() == [False] * 5 + [True] * 3


def test_the_worst_error_is_relative():
    assert user_size.worst([2.0, 1.0], [2.0, 1.25]) == pytest.approx(0.2)


def test_samples_are_added_until_their_mean_is_known():
    answer, drawn = first_answers.Answer(products=0), iter([1.0, 3.0] * 500)
    first_answers.until_enough(answer.counted(lambda: next(drawn)), answer)
    # The standard error of n samples, n even, is 1/sqrt(n - 1): 5 % of 2 or less from 101 on.
    assert answer["products"] == 102
    assert answer["value"] == pytest.approx(2)
    assert answer["standard_error"] == pytest.approx(101**-0.5)


def test_equal_samples_are_not_believed_at_once():
    answer = first_answers.Answer(products=0)
    first_answers.until_enough(answer.counted(lambda: 1.0), answer)
    assert answer["products"] == first_answers.FEWEST


def answer(**more):
    return {"products": 20, "processor_seconds": 10.0, "seconds": 40.0, "within": True} | {
        "peak_bytes": 1e9,
        **more,
    }


def test_factors_and_what_was_not_reached_are_shown():
    late = answer(processor_seconds=600.0, within=False, found=2, peak_bytes=5e8)
    top = {"flatjax": answer(error=1e-4), "PyHessian": late, "reference": answer()}
    trace = {"flatjax": answer(value=3.0, standard_error=0.1), "PyHessian": {"failure": "died"}}
    shown = _user_sizes.answers({"answers": {"gpt": {"hessian": {"top": top, "trace": trace}}}})
    own = "| flatjax | 20 | 0.50 | 10 s | 1.00 | 40 s | 1000 MB | 1.00 |"
    assert f"| GPT, hessian, top 5, 1 % {own} 0.01 % |" in shown
    assert "| PyHessian | 20 | 30.00 | not within 600 s | > 60.00 |" in shown
    assert "500 MB | 0.50 | 2 of 5 found |" in shown
    assert f"| GPT, hessian, trace, 5 % {own} 3 ± 0.1 |" in shown
    assert "| PyHessian |  |  | did not run |  |  |  |  | died |" in shown
    assert "reference" not in shown


def test_products_are_shown_in_gradients():
    seconds = {"gradient": (2.0, 1.0), "ggn": (3.0, 4.0)}
    found = {
        name: {"seconds": {"flatjax": own, "PyTorch": other}, "norms_apart": 0.0}
        for name, (own, other) in seconds.items()
    }
    shown = _user_sizes.products({"products": {"vit": {"params": 5_400_000, **found}}})
    assert "| ViT-Tiny, 5.4 M | gradient | 2.00 s | 1.00 s | 2.00 | 1.00 | 1.00 |" in shown
    assert "|  | ggn | 3.00 s | 4.00 s | 0.75 | 1.50 | 4.00 |" in shown


def test_goals_are_judged():
    top = {"flatjax": answer(), "PyHessian": answer(processor_seconds=29.0, peak_bytes=2e9)}
    top["curvlinops"] = answer(processor_seconds=10.0, peak_bytes=5e8)
    matrices = {"hessian": {"top": top}, "ggn": {"top": {**top, "curvlinops": {"failure": "died"}}}}
    shown = _user_sizes.goals({"answers": {"gpt": matrices}})
    assert "beside PyHessian | flatjax | 2.90 of 3 | not reached | 2.00 of 1 | reached |" in shown
    assert "beside curvlinops | flatjax | 1.00 of 1 | reached | 0.50 of 1 | not reached |" in shown
    assert "ggn" not in shown
    assert "verify" not in shown
    top["flatjax"]["error"] = 0.02
    top[first_answers.UNVERIFIED] = answer(processor_seconds=5.0)
    shown = _user_sizes.goals({"answers": {"gpt": matrices}})
    assert "beside curvlinops | flatjax | 1.00 of 1 | a wrong answer |" in shown
    assert "|  | flatjax, verify=False | 2.00 of 1 | reached | 0.50 of 1 | not reached |" in shown


def test_a_process_that_is_out_of_time_says_so(monkeypatch):
    def run(code):
        done = subprocess.CompletedProcess([], code, stdout='{"a": 1}\n', stderr="why\n\n")
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
        return user_size.process("nothing")

    assert run(0) == {"a": 1}
    assert run(1) == {"failure": "why"}
    assert run(-signal.SIGXCPU)["failure"].startswith("not within its seconds")
