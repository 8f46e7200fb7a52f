# Text-to-video sampling with Open-Sora v1.0 (STDiT): 16 frames of 256x256 at 8 frames per second.
#     python scripts/inference.py configs/opensora-v1-0/inference/16x256x256.py --ckpt-path OpenSora-v1-16x256x256.pth
num_frames = 16
fps = 8  # the weights were trained on every third frame of videos of 24 frames per second
image_size = (256, 256)

model = dict(
    type="STDiT-XL/2",
    from_pretrained="hpcai-tech/Open-Sora/OpenSora-v1-HQ-16x256x256.pth",
    space_scale=0.5,
    time_scale=1.0,
    enable_flash_attn=True,
    enable_layernorm_kernel=True,
)
vae = dict(type="VideoAutoencoderKL", from_pretrained="stabilityai/sd-vae-ft-ema", micro_batch_size=4)
text_encoder = dict(type="t5", from_pretrained="DeepFloyd/t5-v1_1-xxl", model_max_length=120)
scheduler = dict(
    type="iddpm",
    num_sampling_steps=100,
    cfg_scale=7.0,
    cfg_channel=3,  # guidance applies to the first three of the four latent channels
)
dtype = "bf16"

prompt = ["A paper boat drifts down a rain-filled gutter, autumn leaves all around it."]
batch_size = 2
seed = 42
save_dir = "./samples"
