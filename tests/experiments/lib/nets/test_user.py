"""A user's own network: found by its name, and refused in one line if it is none."""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from experiments.lib.nets import named
from experiments.lib.nets.user import user_network
from experiments.lib.runs.errors import BadNetwork

SOURCE = """
import flax.linen as nn

class Net(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(self.num_classes)(x)

class Keyword(Net):
    def __call__(self, x, *, train: bool = False):
        return x

class Backwards(Net):
    def __call__(self, x, train=True):
        return x

class Required(Net):
    def __call__(self, x, train):
        return x

class Blind(Net):
    def __call__(self, x):
        return x

class Swallows(Net):
    def __call__(self, x, **options):
        return x

class Greedy(Net):
    def __call__(self, x, mask, train=False):
        return x

class Shelf:
    def make(num_classes):
        return Net(num_classes)

make = Net
number = 3

def fewer(num_classes):
    return Net(2)

class Pooled(Net):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(self.num_classes)(x).mean(axis=0)

def more(num_classes):
    return Net(num_classes + 2)

def nothing():
    return Net(3)

def two(num_classes, width):
    return Net(3)

def a_class(num_classes):
    return Net

def a_function(num_classes):
    return lambda x: x

def broken(num_classes):
    raise RuntimeError("inside make")
"""


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    (tmp_path / "own_nets").mkdir()
    (tmp_path / "own_nets" / "nets.py").write_text(SOURCE)
    (tmp_path / "own_nets" / "needy.py").write_text("import own_nets_need_this")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith("own_nets")]:
        del sys.modules[name]


@pytest.mark.parametrize("function", ["make", "Keyword", "Shelf.make"])
def test_a_network_is_made_for_so_many_classes(function):
    network = user_network(f"own_nets.nets:{function}", 7)
    assert isinstance(network, nn.Module)
    assert network.num_classes == 7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_nets.nets", "is package.module:function, got 'own_nets.nets'"),
        ("own_nets.nets:", "is package.module:function"),
        (":make", "is package.module:function"),
        ("own_nets/nets.py:make", "is package.module:function"),
        ("own_nets.absent:make", "there is no module own_nets.absent; it is looked for"),
        ("absent_nets.nets:make", "there is no module absent_nets;"),
        ("own_nets.nets:Shelf.absent", "Shelf has no absent"),
        ("own_nets.nets:absent", "own_nets.nets has no absent"),
        ("own_nets.nets:number", "number is no function, but int"),
        ("own_nets.nets:nothing", r"must take \(num_classes\): too many"),
        ("own_nets.nets:two", r"must take \(num_classes\): missing .*width"),
        ("own_nets.nets:a_class", "returned the class Net"),
        ("own_nets.nets:a_function", "must return a flax linen module, returned <class 'function"),
        ("own_nets.nets:Blind", r"Blind; its __call__ must take \(x, train=False\), takes \(self"),
        ("own_nets.nets:Required", r"Required; its __call__ must take"),
        ("own_nets.nets:Backwards", r"Backwards; its __call__ must take"),
        ("own_nets.nets:Swallows", r"Swallows; its __call__ must take"),
        ("own_nets.nets:Greedy", r"Greedy; its __call__ must take"),
    ],
)
def test_what_is_no_network_is_refused(name, message):
    with pytest.raises(BadNetwork, match=message) as caught:
        user_network(name, 7)
    assert "\n" not in str(caught.value)


def test_outputs_are_one_for_each_class():
    inputs, key = jnp.ones((2, 3)), jax.random.key(0)
    assert named.model("own_nets.nets:make", 7).init(key, inputs)[0]
    for function in ("fewer", "more"):
        init = jax.jit(named.model(f"own_nets.nets:{function}", 7).init)
        with pytest.raises(BadNetwork, match=r"\(2, [29]\) for 2 examples, not \(2, 7\)"):
            init(key, inputs)
    with pytest.raises(BadNetwork, match=r"\(7,\) for 2 examples"):
        named.model("own_nets.nets:Pooled", 7).init(key, inputs)


def test_errors_of_the_users_own_code_are_shown_as_they_are():
    with pytest.raises(ModuleNotFoundError, match="own_nets_need_this"):
        user_network("own_nets.needy:make", 7)
    with pytest.raises(RuntimeError, match="inside make"):
        user_network("own_nets.nets:broken", 7)
