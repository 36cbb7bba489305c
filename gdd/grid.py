"""Images as one picture, to look at."""

import io

import torch
from PIL import Image
from torch import Tensor


def grid_png(images: Tensor, *, columns: int = 0, zoom: int = 1) -> bytes:
    """uint8 images (N,C,H,W) row by row as a PNG, `zoom` screen pixels per pixel, in a near-square
    grid or in `columns`."""
    # a grey frame keeps neighbours apart
    images = torch.nn.functional.pad(images, (1, 1, 1, 1), value=128)
    columns = columns or -(-len(images) // max(int(len(images)**0.5), 1))
    rows = -(-len(images) // columns)
    blank = torch.full((rows * columns - len(images), *images.shape[1:]), 128, dtype=torch.uint8)
    c, h, w = images.shape[1:]
    grid = torch.cat([images, blank]).view(rows, columns, c, h, w).permute(0, 3, 1, 4, 2).reshape(
        rows * h, columns * w, c)
    picture = Image.fromarray(grid.squeeze(2).numpy() if c == 1 else grid.numpy())
    content = io.BytesIO()
    picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST).save(
        content, "png")
    return content.getvalue()
