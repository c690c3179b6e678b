"""Measure this machine once, so that `--on this` predicts with its own constants.

    probes   small kernels of known FLOPs and bytes, timed in interleaved rounds
    fit      their medians to the constants of the clock: peaks, bandwidths, shares, start-up times
    store    the result as a device file, and what an interrupted run measured beside it

The record is a device like those in `worthit.spec.devices`, with `is_calibrated` set; intervals of
everything predicted on it shrink accordingly.
"""

from __future__ import annotations

from worthit.calibrate._run import calibrate, lines

__all__ = ["calibrate", "lines"]
