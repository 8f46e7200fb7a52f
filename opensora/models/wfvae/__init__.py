"""WF-VAE, the wavelet-flow video autoencoder of Open-Sora-Plan v1.3 (Li et al. 2024, arXiv:2411.17459)."""
