"""The diffusion transformers of Open-Sora-Plan v1.3."""
