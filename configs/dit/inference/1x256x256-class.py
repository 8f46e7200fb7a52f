# Sampling of images of the 1000 classes of ImageNet with the published DiT: 256x256. Other fields are inherited.
#     python scripts/inference.py configs/dit/inference/1x256x256-class.py --ckpt-path DiT-XL-2-256x256.pt
_base_ = ["1x256x256.py"]

model = dict(condition="label_1000", from_pretrained="DiT-XL-2-256x256.pt")
text_encoder = dict(_delete_=True, type="classes", num_classes=1000)
prompt = ["207", "250", "979"]  # golden retriever, husky, valley
