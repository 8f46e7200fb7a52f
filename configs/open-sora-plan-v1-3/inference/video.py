# Text-to-video sampling with Open-Sora-Plan v1.3: 93 frames of 352x640 at 18 frames per second.
#     python scripts/inference.py configs/open-sora-plan-v1-3/inference/video.py
# The transformer takes 7.8 GB of device memory in bf16, without text encoder and VAE. This figure is computed from the
# model's configuration and was not measured on Ascend (docs/parallelism.md).
num_frames = 93
fps = 18
image_size = (352, 640)

model = dict(type="OpenSoraT2V_v1_3-2B/122", from_pretrained="LanguageBind/Open-Sora-Plan-v1.3.0/any93x640x640")
vae = dict(type="WFVAEModel_D8_4x8x8", from_pretrained="LanguageBind/Open-Sora-Plan-v1.3.0/vae")
text_encoder = dict(type="mt5", from_pretrained="google/mt5-xxl", model_max_length=512)
scheduler = dict(
    type="EulerAncestralDiscrete",
    num_sampling_steps=100,
    cfg_scale=7.5,
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
)
dtype = "bf16"

prompt = ["A paper boat drifts down a rain-filled gutter."]
seed = 1234
save_dir = "./samples"
