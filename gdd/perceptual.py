"""LPIPS, the distance of the paper's consistency losses, through the `lpips` package."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

Distance = Callable[[Tensor, Tensor], Tensor]  # of images (N,C,H,W), twice, in [-1,1]: (N,)


class Lpips(nn.Module):
    """Images (N,3,H,W) in [-1,1], twice, to their distance (N,) (Zhang et al. 2018,
    arXiv:1801.03924), at 224 pixels.

    `weights` is timm's safetensors file of VGG16, which holds torchvision's weights; None leaves
    random ones. How the layers are weighted is fixed by the package. Raises ValueError if the file
    is another network's.
    """
    def __init__(self, weights: Path | str | None = None):
        super().__init__()
        import lpips

        with warnings.catch_warnings():  # it calls torchvision as torchvision was called years ago
            warnings.simplefilter("ignore", UserWarning)
            self.metric = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        if weights is not None:
            names = self.metric.net.state_dict()  # slice3.10.weight is VGG's features.10.weight
            try:
                found = load_file(weights)
                self.metric.net.load_state_dict({
                    name: found[f"features.{name.split('.', 1)[1]}"] for name in names})
            except (KeyError, RuntimeError, SafetensorError) as error:
                raise ValueError(f"{weights} is not timm's vgg16: {error}") from None
        self.requires_grad_(False).eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if a.shape[-1] != 224:
            a, b = (F.interpolate(x, size=(224, 224), mode="bilinear", align_corners=False)
                    for x in (a, b))
        return self.metric(a, b).flatten()
