"""The image autoencoder of Stable Diffusion, applied frame by frame.

VideoAutoencoderKL(**config)                keys of diffusers' config.json, and micro_batch_size: frames at a time
VideoAutoencoderKL.from_pretrained(path, dtype=ms.float32, micro_batch_size=None)       a folder of diffusers
vae.encode(x, noise=None)                   (B, 3, T, H, W) -> (B, C, T, H // 8, W // 8), sampled and scaled;
                                            noise: k -> (frames, C, h, w) for the k-th micro batch
vae.decode(z)                               (B, C, T, h, w) -> (B, 3, T, 8 h, 8 w)
vae.get_latent_size((T, H, W))              (T, H // 8, W // 8); None remains None
vae.out_channels                            C
"""
