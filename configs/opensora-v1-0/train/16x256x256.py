# Text-to-video training of Open-Sora v1.0 (STDiT): 16 frames of 256x256. It starts from the image model PixArt; the
# published weights were trained for 80000 steps on 366000 clips, then for 24000 on 20000 clips of high quality.
#     python scripts/train.py configs/opensora-v1-0/train/16x256x256.py --data-path data.csv
dataset = dict(
    type="VideoTextDataset",
    data_path=None,  # csv file with `path,text` in each row; --data-path
    num_frames=16,
    frame_interval=3,
    image_size=(256, 256),
)
batch_size = 8
num_workers = 4
dtype = "bf16"
plugin = "zero2"
grad_checkpoint = False

model = dict(
    type="STDiT-XL/2",
    from_pretrained="PixArt-XL-2-512x512.pth",  # its temporal attention is new, with an output of zero
    space_scale=0.5,
    time_scale=1.0,
    enable_flash_attn=True,
    enable_layernorm_kernel=True,
)
vae = dict(type="VideoAutoencoderKL", from_pretrained="stabilityai/sd-vae-ft-ema", micro_batch_size=16)
text_encoder = dict(
    type="t5",
    from_pretrained="DeepFloyd/t5-v1_1-xxl",
    model_max_length=120,
    shardformer=True,  # 16-bit weights
)
scheduler = dict(type="iddpm", timestep_respacing="")

seed = 42
outputs = "outputs"
epochs = 1000
log_every = 10
ckpt_every = 1000
load = None  # checkpoint to resume from; --load
lr = 2e-5
grad_clip = 1.0
