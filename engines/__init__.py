"""Compiled engines: what a vendor's builder makes of a bundle's graphs, and the code that runs it.

An engine stands in for a graph of the same bundle: it takes the same inputs, gives the same
outputs, and is bound to the machine it was built on. Robot side: nothing here imports torch,
onnx or transformers.
"""
