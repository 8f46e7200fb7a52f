# Text-to-video training of Open-Sora v1.0 (STDiT): 16 frames of 512x512, from the weights of 16x256x256. The published
# weights were trained for 20000 steps. Other fields are inherited.
#     python scripts/train.py configs/opensora-v1-0/train/16x512x512.py --data-path data.csv
_base_ = ["16x256x256.py"]

dataset = dict(image_size=(512, 512))
grad_checkpoint = True
model = dict(from_pretrained="hpcai-tech/Open-Sora/OpenSora-v1-HQ-16x256x256.pth", space_scale=1.0)
vae = dict(micro_batch_size=8)
ckpt_every = 500
