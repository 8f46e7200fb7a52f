"""The diffusion transformer of Open-Sora-Plan v1.0 and v1.1."""
