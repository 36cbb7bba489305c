"""Figure 3 of a UNet of diffusers, here of random weights: which layer is active at which noise
level?
"""

import torch
from diffusers import DDPMScheduler, UNet2DModel

import analysis
from analysis.activation_plots import describe, plot_page
from analysis.plots import paper_style

torch.manual_seed(0)
unet = UNet2DModel(sample_size=16, block_out_channels=(32, 32, 64, 64))  # or .from_pretrained(...)
denoiser = analysis.from_diffusers(unet, DDPMScheduler())
table = analysis.measure(denoiser, model="UNet2DModel", pattern="*.resnets.*.conv2", seeds=range(4))
table.to_csv("figure3.csv", index=False)
paper_style()
plot_page(table).savefig("figure3.png")
print(describe(table))
