"""What to ask before a long run: does it fit, how long is it, is every product the same twice."""

from flatjax.preflight._calls import CallCost as CallCost
from flatjax.preflight._determinism import Determinism as Determinism
from flatjax.preflight._determinism import check_deterministic as check_deterministic
from flatjax.preflight._plan import Plan as Plan
from flatjax.preflight._plan import plan as plan
