"""The pod's resources: accelerators, memory, the offload volume and the Pod's own description.

This floor measures and never decides; `placement` plans with the result of `read_resources`.
Importing it imports neither torch nor the `kubernetes` client: both are loaded when they are used.
"""

from predictor.pod.inspect import read_resources
from predictor.pod.resources import Accelerator, Memory, PodResources, Volume

__all__ = ["Accelerator", "Memory", "PodResources", "Volume", "read_resources"]
