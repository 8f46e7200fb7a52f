# Videos of several resolutions and lengths: python scripts/train.py THIS_FILE --data-path data.csv
dataset = dict(
    type="VariableVideoTextDataset",
    data_path=None,  # a csv file with path, text, num_frames, height, width; --data-path
    frame_interval=3,
    transform_name="resize_crop",
)
# resolution: frames: (probability that a sample that fits stays, batch size)
bucket_config = {
    "240p": {16: (1.0, 16), 32: (1.0, 8), 64: (1.0, 4), 128: (1.0, 2)},
    "480p": {16: (1.0, 4), 32: (0.0, None)},  # videos long enough for 32 frames go on to 240p
    "720p": {16: (0.5, 2)},
}
# how often which frames are given instead of trained
mask_ratios = {
    "identity": 0.75,
    "quarter_random": 0.025,
    "quarter_head": 0.025,
    "quarter_tail": 0.025,
    "quarter_head_tail": 0.05,
    "image_random": 0.025,
    "image_head": 0.025,
    "image_tail": 0.025,
    "image_head_tail": 0.05,
}
num_workers = 8
dtype = "bf16"
plugin = "zero2"
grad_checkpoint = True

model = dict(
    type="STDiT2-XL/2",
    from_pretrained=None,  # weights to start from; --ckpt-path
    input_sq_size=512,
    qk_norm=True,
    enable_flash_attn=True,
    enable_layernorm_kernel=True,
)
vae = dict(type="VideoAutoencoderKL", from_pretrained="stabilityai/sd-vae-ft-ema", micro_batch_size=4)
text_encoder = dict(
    type="t5",
    from_pretrained="DeepFloyd/t5-v1_1-xxl",
    model_max_length=200,
    shardformer=True,  # 16 bits
)
scheduler = dict(type="iddpm", timestep_respacing="")

seed = 42
outputs = "outputs"
epochs = 1000
log_every = 10
ckpt_every = 500
load = None  # a checkpoint to go on from; --load
lr = 2e-5
grad_clip = 1.0
