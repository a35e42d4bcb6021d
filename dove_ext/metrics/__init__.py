"""How far an image is from its original: in pixels, and as seen by a network."""

from dove_ext.metrics.lengths import OWN, AtLength, at_lengths, own_lengths
from dove_ext.metrics.perceptual import PERCEPTUAL_DISTANCES, perceptual_distance
from dove_ext.metrics.pixel import PSNR_CEILING, laplacian_variance, mse, psnr, psnr_of_mse

__all__ = [
    "OWN",
    "PERCEPTUAL_DISTANCES",
    "PSNR_CEILING",
    "AtLength",
    "at_lengths",
    "laplacian_variance",
    "mse",
    "own_lengths",
    "perceptual_distance",
    "psnr",
    "psnr_of_mse",
]
