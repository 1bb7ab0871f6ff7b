"""Jobs on the nodes of a Ray cluster: `dafast label|data pack|data sky|eval --cluster ray`.

The jobs themselves are those of `dafast.data.jobs`; the runner here gives their parts to the
cluster instead of doing them in this process.
"""

from dafast.cluster.connection import ClusterError, connected
from dafast.cluster.runner import RayRunner

__all__ = ["ClusterError", "RayRunner", "connected"]
