"""lladav: the compiled edge runtime for LLaDA-V."""

__version__ = "0.1.0"
