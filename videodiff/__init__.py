"""Videodiff trains text-to-video diffusion models with a noise level per frame.

Read five files, ten minutes each: `diffusion/path.py`, `diffusion/objective.py`, `diffusion/sampler.py`,
`denoiser/block.py`, `denoiser/transformer.py`.
"""

__version__ = "0.1.0"
