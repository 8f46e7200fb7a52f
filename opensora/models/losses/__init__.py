"""Networks that judge a reconstruction while the VAE is trained."""
