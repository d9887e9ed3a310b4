"""One slide of the demo cohort: picture, file and truth."""

from pathlib import Path

import numpy as np
from shapely.geometry import MultiPolygon

from mm_assets.synthetic.anatomy import draw_anatomy
from mm_assets.synthetic.artefacts import blur_patch, draw_pen, fold
from mm_assets.synthetic.oddities import SlidePlan
from mm_assets.synthetic.painting import paint
from mm_assets.synthetic.phenotype import phenotype
from mm_assets.synthetic.stain import Stain
from mm_assets.synthetic.tiff import write_pyramid
from mm_assets.synthetic.truth import SlideTruth

MPP = 0.5


def write_slide(
    path: Path,
    plan: SlidePlan,
    image_latent: float,
    site: int,
    seed: int,
    slides_px: tuple[int, int],
) -> SlideTruth:
    """Paint and write one slide, and give back what is on it.

    Parameters
    ----------
    path
        TIFF to write.
    image_latent
        Standard normal latent that the lesions show.
    site
        Number of the site, which fixes the stain.
    slides_px
        Least and largest edge in pixels.
    """
    rng = np.random.default_rng([seed, plan.patient, 50 + plan.section])
    width, height = (int(edge) for edge in rng.integers(slides_px[0], slides_px[1] + 1, 2))
    look = phenotype(image_latent)
    stain = Stain.of_site(site, seed)
    anatomy = draw_anatomy(rng, (width, height), look)
    truth = SlideTruth(anatomy.tissue, anatomy.lesions, anatomy.nuclei)
    nothing = SlideTruth(MultiPolygon(), MultiPolygon(), anatomy.nuclei[:0])
    if plan.state == "blank":
        write_pyramid(path, stain.glass(width, height), MPP)
        return nothing
    image = paint(rng, anatomy, look, stain)
    if plan.folded:
        fold(rng, image, anatomy.tissue)
    if plan.blurred:
        blur_patch(rng, image, anatomy.tissue)
    if plan.pen:
        draw_pen(rng, image, anatomy.tissue, plan.pen)
    write_pyramid(path, image, None if plan.state == "no_mpp" else MPP)
    if plan.state == "truncated":
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 2 // 5])
        return nothing
    return truth
