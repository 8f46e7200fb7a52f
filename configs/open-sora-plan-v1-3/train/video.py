# Text-to-video training of Open-Sora-Plan v1.3 on videos and images: up to 93 frames and 102400 pixels (320x320).
#     python scripts/train.py configs/open-sora-plan-v1-3/train/video.py
# docs/parallelism.md has the memory that a device needs for ZeRO stages and sequence parallelism.
dataset = dict(
    type="T2VDataset",
    data="scripts/train_data/merge_data.txt",
    num_frames=93,
    max_hxw=102400,
    min_hxw=25600,
    train_fps=18,
    group_data=True,
    cfg=0.1,  # probability of dropping the caption
)
batch_size = 1
num_workers = 8
dtype = "bf16"
plugin = "zero2"
sp_size = 1  # processes per video (sequence parallelism)
grad_checkpoint = True

model = dict(
    type="OpenSoraT2V_v1_3-2B/122",
    from_pretrained=None,  # initial weights; --ckpt-path
)
vae = dict(type="WFVAEModel_D8_4x8x8", from_pretrained="LanguageBind/Open-Sora-Plan-v1.3.0/vae")
text_encoder = dict(type="mt5", from_pretrained="google/mt5-xxl", model_max_length=512)
scheduler = dict(
    type="EulerAncestralDiscrete", prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_gamma=5.0
)

seed = 1234
outputs = "outputs"
max_train_steps = 1_000_000
log_every = 10
ckpt_every = 500
load = None  # checkpoint to resume from; --load
lr = 1e-5
grad_clip = 1.0
