# Text-to-video training of Open-Sora v1.1 (STDiT2) in buckets of resolution and number of frames.
#     python scripts/train.py configs/opensora-v1-1/train/video.py --data-path data.csv
# docs/commands.md has a command that shows how many samples of a csv file each bucket gets.
dataset = dict(
    type="VariableVideoTextDataset",
    data_path=None,  # csv file with the columns path, text, num_frames, height, width; --data-path
    frame_interval=3,
    transform_name="resize_crop",
)
# resolution: {frames: (probability of keeping a sample that fits the bucket, batch size)}
bucket_config = {
    "240p": {16: (1.0, 16), 32: (1.0, 8), 64: (1.0, 4), 128: (1.0, 2)},
    "480p": {16: (1.0, 4), 32: (0.0, None)},  # videos of 32 frames or more fall through to 240p
    "720p": {16: (0.5, 2)},
}
# probabilities of the mask types, which choose the conditioning frames; these have no loss
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
    from_pretrained=None,  # initial weights; --ckpt-path
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
    shardformer=True,  # 16-bit weights
)
scheduler = dict(type="iddpm", timestep_respacing="")

seed = 42
outputs = "outputs"
epochs = 1000
log_every = 10
ckpt_every = 500
load = None  # checkpoint to resume from; --load
lr = 2e-5
grad_clip = 1.0
