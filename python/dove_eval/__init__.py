"""Measure a model on your own images: `dove eval`, and the functions behind it.

Each verb is one file that measures (numbers, by streaming over the images) and shows (a section of the
report). What they share: `datasets` finds images, `rows` keeps one row of numbers an image on disk, so that a
run can go on where it stopped, `systems` is what is compared, `bootstrap` says how sure a mean is, and
`report` and `plots` draw.
"""

COUNTS = (16, 32, 64, 128, 256)  # token counts that curves are drawn through
