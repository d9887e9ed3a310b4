"""How the image latent of a patient looks at nucleus, tile and region scale."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Phenotype:
    """Appearance of the lesions of one patient.

    Attributes
    ----------
    nuclear_radius
        Median radius of tumour nuclei in pixels (0.5 micrometres).
    nuclear_darkness
        Median amount of haematoxylin in tumour nuclei (optical density units).
    spacing
        Distance of neighbouring tumour nuclei in pixels.
    discohesion
        Share of tumour that grows in single files instead of glands, 0 to 1.
    basophilia
        Haematoxylin of tumour cytoplasm: what makes lesions stand out at low power.
    extent
        Share of the tissue that is lesion.
    """

    nuclear_radius: float
    nuclear_darkness: float
    spacing: float
    discohesion: float
    basophilia: float
    extent: float


def phenotype(image: float) -> Phenotype:
    """Phenotype of an image latent, monotone in every attribute and bounded for extreme latents.

    Normal epithelium has radius 6.5, darkness 1.2 and spacing 15 (`anatomy`), and sites differ by
    about 8 % in stain (`stain`): both are small against the range spanned here.
    """
    bounded = 2.2 * np.tanh(image / 2.2)
    return Phenotype(
        nuclear_radius=8.2 + 1.3 * bounded,
        nuclear_darkness=1.55 + 0.28 * bounded,
        spacing=17.5 - 1.5 * bounded,
        discohesion=float(1 / (1 + np.exp(-1.6 * bounded))),
        basophilia=0.16 + 0.05 * bounded,
        extent=0.38 + 0.08 * bounded,
    )
