"""Calibration: value ranges of a model's activations, for bundles with 8-bit and smaller weights.

A bundle's own graphs are run on pictures and questions, and what their linear layers multiply is
recorded as statistics, which `lladav.export` turns into scales inside the graphs of a new bundle,
so that every backend computes the same. Workstation side: needs the `export` extra.
"""

from lladav.calib.calibrate import CalibrationConfig, calibrate

__all__ = ["CalibrationConfig", "calibrate"]
