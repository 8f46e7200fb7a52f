"""CausalVAE, the causal video autoencoder of Open-Sora-Plan v1.0, v1.1 and v1.2."""
