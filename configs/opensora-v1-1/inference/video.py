# Text-to-video sampling with Open-Sora v1.1 (STDiT2): 16 frames of 240x426 at fps / frame_interval = 8 per second.
#     python scripts/inference.py configs/opensora-v1-1/inference/video.py --ckpt-path DIR
num_frames = 16
frame_interval = 3
fps = 24
image_size = (240, 426)
multi_resolution = "STDiT2"

model = dict(
    type="STDiT2-XL/2",
    from_pretrained="hpcai-tech/OpenSora-STDiT-v2-stage3",
    input_sq_size=512,
    qk_norm=True,
    enable_flash_attn=True,
    enable_layernorm_kernel=True,
)
vae = dict(type="VideoAutoencoderKL", from_pretrained="stabilityai/sd-vae-ft-ema", micro_batch_size=4)
text_encoder = dict(type="t5", from_pretrained="DeepFloyd/t5-v1_1-xxl", model_max_length=200)
scheduler = dict(
    type="iddpm",
    num_sampling_steps=100,
    cfg_scale=7.0,
    cfg_channel=3,  # guidance applies to the first three of the four latent channels
)
dtype = "bf16"

prompt = ["A paper boat drifts down a rain-filled gutter, autumn leaves all around it."]
batch_size = 1
seed = 42
save_dir = "./samples"
