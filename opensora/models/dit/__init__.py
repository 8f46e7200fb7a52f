"""The diffusion transformers of Open-Sora-Plan v1.2 and v1.3."""
