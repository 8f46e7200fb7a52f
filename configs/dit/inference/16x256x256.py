# Text-to-video sampling with DiT and CLIP: 16 frames of 256x256. There are no published weights; give those of your own
# training.
#     python scripts/inference.py configs/dit/inference/16x256x256.py --ckpt-path DIR
num_frames = 16
fps = 8
image_size = (256, 256)

model = dict(
    type="DiT-XL/2",
    condition="text",
    from_pretrained=None,  # --ckpt-path
    enable_flash_attn=True,
    enable_layernorm_kernel=True,
)
vae = dict(type="VideoAutoencoderKL", from_pretrained="stabilityai/sd-vae-ft-ema", micro_batch_size=4)
text_encoder = dict(type="clip", from_pretrained="openai/clip-vit-base-patch32", model_max_length=77)
scheduler = dict(type="dpm-solver", num_sampling_steps=20, cfg_scale=4.0)
dtype = "bf16"

prompt = ["A paper boat drifts down a rain-filled gutter, autumn leaves all around it."]
batch_size = 2
seed = 42
save_dir = "./samples"
