"""Pictures: read, made ready for a model, found in folders and shards, and drawn."""

from dove_ext.images.files import read_image, save_image, to_pil
from dove_ext.images.prepare import Fit, ImageLike, Images, prepare_images

__all__ = ["Fit", "ImageLike", "Images", "prepare_images", "read_image", "save_image", "to_pil"]
