"""The paper's other applications: guidance, restoration and editing, each image with its own .ddcm file.

All of them are choosers for `Codec.sample`: they say which atoms are wanted, and what comes out is an ordinary file
that decodes without the classifier, the measurement or the metric that chose them (docs/applications.md).
"""

from .edit import edit
from .guidance import Subset, ccfg, classifier_gradient
from .operators import LinearOperator, operator
from .perceptual import restore_blind
from .posterior import restore

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
