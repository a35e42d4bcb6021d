"""How far an image is from its original: in pixels, and as seen by a network."""

from dove_ext.metrics.perceptual import PERCEPTUAL_DISTANCES, perceptual_distance
from dove_ext.metrics.pixel import laplacian_variance, psnr

__all__ = ["PERCEPTUAL_DISTANCES", "laplacian_variance", "perceptual_distance", "psnr"]
