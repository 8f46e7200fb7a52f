# Text-to-video sampling with Open-Sora v1.0 (STDiT): 16 frames of 512x512. Other fields are inherited.
#     python scripts/inference.py configs/opensora-v1-0/inference/16x512x512.py --ckpt-path DIR
_base_ = ["16x256x256.py"]

image_size = (512, 512)
model = dict(from_pretrained="hpcai-tech/Open-Sora/OpenSora-v1-HQ-16x512x512.pth", space_scale=1.0)
