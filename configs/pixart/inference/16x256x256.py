# Text-to-video sampling with PixArt, whose attention is over all frames: 16 frames of 256x256. There are no published
# weights of videos; give those of your own training.
#     python scripts/inference.py configs/pixart/inference/16x256x256.py --ckpt-path DIR
num_frames = 16
fps = 8
image_size = (256, 256)

model = dict(
    type="PixArt-XL/2",
    from_pretrained=None,  # --ckpt-path
    space_scale=0.5,
    time_scale=1.0,
    enable_flash_attn=True,
    enable_layernorm_kernel=True,
)
vae = dict(type="VideoAutoencoderKL", from_pretrained="stabilityai/sd-vae-ft-ema", micro_batch_size=4)
text_encoder = dict(type="t5", from_pretrained="DeepFloyd/t5-v1_1-xxl", model_max_length=120)
scheduler = dict(type="dpm-solver", num_sampling_steps=20, cfg_scale=7.0)
dtype = "bf16"

prompt = ["A lighthouse on a cliff at dusk, waves below, in oil."]
batch_size = 2
seed = 42
save_dir = "./samples"
