"""Permutations of a network's units: stated, checked, applied, and matched between two networks."""

from flatjax.symmetry._activations import match_activations as match_activations
from flatjax.symmetry._check import Check as Check
from flatjax.symmetry._check import check_symmetry as check_symmetry
from flatjax.symmetry._permutations import apply_permutation as apply_permutation
from flatjax.symmetry._permutations import random_permutations as random_permutations
from flatjax.symmetry._spec import Spec as Spec
from flatjax.symmetry._spec import spec_of as spec_of
from flatjax.symmetry._weights import Matching as Matching
from flatjax.symmetry._weights import match_weights as match_weights
