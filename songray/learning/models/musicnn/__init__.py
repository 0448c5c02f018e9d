"""Pretrained: musicnn (Pons and Serra, 2019, arXiv:1909.06654), whose weights the package contains.

In reading order:

network    the network
coarse     its features from a coarser spectrogram, for `distilled`
convert    the wheel that publishes the weights → the files beside this one; not needed to use them

msd.safetensors and mtt.safetensors are the weights. LICENCE says under which terms they were published, and
what they were trained on.
"""
