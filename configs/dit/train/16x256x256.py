# Text-to-video training of DiT with CLIP: 16 frames of 256x256. It starts from the published model of images, whose
# embedding of classes is replaced by a new one of texts.
#     python scripts/train.py configs/dit/train/16x256x256.py --data-path data.csv
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
    type="DiT-XL/2",
    condition="text",
    from_pretrained="DiT-XL-2-256x256.pt",
    enable_flash_attn=True,
    enable_layernorm_kernel=True,
)
vae = dict(type="VideoAutoencoderKL", from_pretrained="stabilityai/sd-vae-ft-ema", micro_batch_size=16)
text_encoder = dict(type="clip", from_pretrained="openai/clip-vit-base-patch32", model_max_length=77)
scheduler = dict(type="iddpm", timestep_respacing="")

seed = 42
outputs = "outputs"
epochs = 1000
log_every = 10
ckpt_every = 1000
load = None  # checkpoint to resume from; --load
lr = 2e-5
grad_clip = 1.0
