"""`lladav profile`: where every millisecond of an answer goes.

Example:
    >>> from lladav.runtime import GenerationConfig, Pipeline
    >>> from lladav.runtime.profiling import profile, synthetic
    >>> pipe = Pipeline.load("bundle", feature_cache_bytes=0)
    >>> measured = profile(pipe, synthetic(pipe, GenerationConfig(preset="fast")), runs=100)
    >>> slowest = max(measured.profile.steps, key=lambda step: step.ms.p99)
"""

from lladav.runtime.profiling.measure import Measured, profile
from lladav.runtime.profiling.memory import MemoryLedger
from lladav.runtime.profiling.record import Profile
from lladav.runtime.profiling.workload import Asking, synthetic

__all__ = ["Asking", "Measured", "MemoryLedger", "Profile", "profile", "synthetic"]
