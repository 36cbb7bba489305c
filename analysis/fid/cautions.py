"""What may be wrong with a distance, in words: each function returns the sentences that apply."""

import torch
from torch import Tensor

ENOUGH = 10  # images per feature, from which on nothing is said
_FLOOR = 1.1  # of the floor: a distance that is below it may be the floor
_BLOCKS = 1.05  # of `blockiness`: photographs have 0.99, as JPEG of quality 90 1.01, of 75 1.09
_DETAIL = 1.5  # of the shares of the finest detail in two sets, either way


def of_size(name: str, n: int, dim: int) -> list[str]:
    """n images of a source beside `dim` features."""
    if n < dim:
        return [
            f"{name} has n = {n:,} images for {dim:,} features: its covariance is singular, and "
            "most of the distance may be the bias of small samples"]
    if n < ENOUGH * dim:
        return [
            f"{name} has n = {n:,} images for {dim:,} features, fewer than {ENOUGH} for each: "
            "the distance is biased upwards; compare it only with others of the same n"]
    return []


def of_different_n(a: str, n_a: int, b: str, n_b: int) -> list[str]:
    if n_a == n_b:
        return []
    return [
        f"{a} has n = {n_a:,} and {b} n = {n_b:,}: the distance depends on both, and the "
        "smaller one decides its bias"]


def is_floor(distance: float, floor: float) -> bool:
    """Whether the distance to a half of the other source is that of its two halves, at one n."""
    return distance <= _FLOOR * floor


def of_floor(name: str, other: str, features: str, distance: float, floor: float) -> list[str]:
    if not is_floor(distance, floor):
        return []
    return [
        f"by {features}, {name} is as near to {other} ({distance:.4g}) as two halves of "
        f"{other} are to one another ({floor:.4g}) at the same n: these features cannot tell "
        "more"]


def of_files(name: str, lossy: bool) -> list[str]:
    if not lossy:
        return []
    return [
        f"{name} holds JPEG or WebP files: features see the compression (Parmar et al. 2022, "
        "arXiv:2104.11222); compare lossless images with lossless ones"]


def of_pixels(name: str, images: Tensor) -> list[str]:
    """uint8 images (N,C,H,W) with the blocks of a JPEG in them."""
    if min(images.shape[2:]) < 32 or (steps := blockiness(images)) < _BLOCKS:
        return []
    return [
        f"{name} shows JPEG's 8x8 blocks: steps at their edges are {steps:.2f} times those "
        "elsewhere"]


def of_detail(a: str, of_a: Tensor, b: str, of_b: Tensor) -> list[str]:
    """uint8 images (N,C,H,W) of two sources of one size."""
    if of_a.shape[1:] != of_b.shape[1:]:
        return [
            f"{a} is {_size(of_a)}, {b} {_size(of_b)}: one of them is resized by the features "
            "more than the other, which is a difference of its own"]
    ratio = detail(of_a) / max(detail(of_b), 1e-12)
    if 1 / _DETAIL < ratio < _DETAIL:
        return []
    return [
        f"the finest detail of {a} is {ratio:.2f} times that of {b}, by its share of variance: "
        "a blur, a resize, JPEG or noise in one of them is part of the distance"]


def of_resize(features: str, images: Tensor) -> list[str]:
    """Inception's usual resize skips pixels of what is larger than its input."""
    plain = features in ("inception", "inception:torchscript", "inception:legacy_pytorch")
    if not plain or max(images.shape[2:]) <= 299:
        return []
    return [
        f"{features} makes {_size(images)} images smaller without antialiasing (Parmar et al. "
        "2022, arXiv:2104.11222); inception:clean does it with"]


def _size(images: Tensor) -> str:
    return f"{images.shape[3]}x{images.shape[2]}"


def blockiness(images: Tensor) -> float:
    """Of uint8 images (N,C,H,W) the mean absolute step between pixels across the edges of 8x8
    blocks over that at the steepest of the seven other places; at most about 1 without JPEG."""
    x = images.float()
    places = torch.zeros(8)
    for steps in (y.diff(dim=3).abs().mean(dim=(0, 1, 2)) for y in (x, x.mT)):
        places += torch.stack([steps[place::8].mean() for place in range(8)])
    return float(places[7] / places[:7].max().clamp(min=1e-12))


def detail(images: Tensor) -> float:
    """Of uint8 images (N,C,H,W) the mean square of second differences over the variance: 0 for
    flat ramps, 6 for white noise."""
    x = images.float()
    second = [y.diff(n=2, dim=3).square().mean() for y in (x, x.mT)]
    return float((second[0] + second[1]) / 2 / x.var().clamp(min=1e-12))
