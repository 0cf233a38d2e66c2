"""What an optax state says of curvature: the preconditioner and the stability threshold."""

from flatjax.optimizers._preconditioner import preconditioner as preconditioner
from flatjax.optimizers._stability_threshold import stability_threshold as stability_threshold
