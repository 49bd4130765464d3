"""The thin runtime: numpy, Pillow, tokenizers and ONNX Runtime, nothing else.

Example:
    >>> from lladav.runtime import Pipeline
    >>> pipe = Pipeline.load("bundle")
    >>> pipe.generate("What is this?", images=["octopus.png"]).text
    'octopus'
"""

from lladav.runtime.config import GenerationConfig
from lladav.runtime.pipeline import Pipeline
from lladav.runtime.prompt import Message
from lladav.runtime.question import Question
from lladav.runtime.results import Answer, StepEvent

__all__ = ["Answer", "GenerationConfig", "Message", "Pipeline", "Question", "StepEvent"]
