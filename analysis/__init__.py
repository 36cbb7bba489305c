"""The measurements. `import analysis` gives what a script needs, and torch only once it is asked
for:

    table = analysis.measure(gdd.load("gdd-i"), model="gdd-i", seeds=range(64))     # activations
    distance = analysis.rel_fid("gdd-i", "teacher", analysis.extractor("inception"))
    denoiser = analysis.from_diffusers(unet, scheduler)       # or from_edm, or wrap
    table = analysis.measure(denoiser, pattern="*.resnets.*.conv2")
"""

# ruff: noqa: F401
from typing import TYPE_CHECKING

from gdd.extras import public

if TYPE_CHECKING:
    from analysis.activations import measure
    from analysis.adapters import from_diffusers, from_edm, wrap
    from analysis.extractors import extractor
    from analysis.features import Extractor, of_function
    from analysis.fid.compare import abs_fid, rel_fid
    from analysis.fid.frechet import FeatureStats, frechet_distance
    from analysis.fid.own import of_generator, of_images
    from analysis.fid.sources import open_source
    from analysis.hooks import record

_HOME = {
    "Extractor": "features", "FeatureStats": "fid.frechet", "abs_fid": "fid.compare",
    "extractor": "extractors", "frechet_distance": "fid.frechet", "from_diffusers": "adapters",
    "from_edm": "adapters", "measure": "activations", "of_function": "features",
    "of_generator": "fid.own", "of_images": "fid.own", "open_source": "fid.sources",
    "record": "hooks", "rel_fid": "fid.compare", "wrap": "adapters",
}  # yapf: disable
__all__ = list(_HOME)
__getattr__ = public(__name__, _HOME)
