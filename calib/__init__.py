"""Calibration: value ranges of a model's activations, for bundles with 8-bit and smaller weights.

Ranges are collected by running a bundle's own graphs on pictures and questions, and become
scales inside the graphs of a new bundle, so that every backend computes the same.
"""
