"""The paper's other applications: guidance, restoration and editing, each image with its own .ddcm file.

All of them are choosers for `Codec.sample`: they say which atoms are wanted, and what comes out is an ordinary file
that decodes without the classifier, the measurement or the metric that chose them (docs/applications.md).
"""

from ddcm_fast.tasks.edit import edit
from ddcm_fast.tasks.guidance import Subset, ccfg, classifier_gradient
from ddcm_fast.tasks.operators import LinearOperator, operator
from ddcm_fast.tasks.perceptual import restore_blind
from ddcm_fast.tasks.posterior import restore

__all__ = [
    "LinearOperator",
    "Subset",
    "ccfg",
    "classifier_gradient",
    "edit",
    "operator",
    "restore",
    "restore_blind",
]
