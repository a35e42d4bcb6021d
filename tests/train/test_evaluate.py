"""What a run's log says of held-out images."""

from __future__ import annotations

from dove_ext.metrics import OWN, at_lengths, psnr
from dove_train.data import held_out_images
from dove_train.evaluate import evaluate
from tests.models.micro import micro, stop_at_share
from tests.train.small import PHOTOS


def test_the_numbers_are_means_over_all_batches() -> None:
    model = stop_at_share(micro(shortcut=True))
    pixels = held_out_images([PHOTOS], 32, 5)[0]
    result = evaluate(model, pixels, batch_size=2)
    assert result["images"] == 5
    assert set(result["psnr_db"]) == {"4", "8", "16", "32", "64"}
    assert result["length_p5"] <= result["length_mean"] <= result["length_p95"]
    own = next(at for at in at_lengths(model, pixels, ()) if at.point == OWN)
    assert result["psnr_db_own_length"] == round(psnr(own.images, pixels, black=-1.0).mean().item(), 3)
    assert result["length_mean"] == round(own.lengths.double().mean().item(), 1)
    assert evaluate(micro().vqgan, pixels, batch_size=2)["psnr_db"].keys() == {"64"}
