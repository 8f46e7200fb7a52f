"""The diffusion transformers STDiT2 of Open-Sora v1.1 and STDiT of v1.0 (`v1_0`), and the base of v1.0's others.

STDiT2(**config)                            keys of `STDiT2Config`; PRESETS["STDiT2-XL/2"] is the published size
STDiT2.from_pretrained(path, dtype=ms.float32, use_ema=True, **config)
    a .pt file, safetensors, a folder of weights, or a training run's folder with its weights in `model/`
model(x, timestep, y, mask=None, x_mask=None, num_frames, height, width, ar, fps) -> (B, 2 C, T, H, W) float32
model.null_text(n) -> (n, 1, L, caption_channels): the learned null text, for classifier-free guidance
"""
