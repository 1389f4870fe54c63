"""The resources of this pod: accelerators, memory, offload volume and the Pod's own description.

This floor measures and never decides; `placement` works with what `read` returns. Importing it
imports neither torch nor the `kubernetes` client: both are loaded when something is measured.
"""

from predictor.pod.inspect import read
from predictor.pod.resources import Accelerator, Memory, PodResources, Volume

__all__ = ["Accelerator", "Memory", "PodResources", "Volume", "read"]
