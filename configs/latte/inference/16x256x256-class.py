# Sampling of videos of the 101 classes of UCF101 with the published Latte: 16 frames of 256x256.
#     python scripts/inference.py configs/latte/inference/16x256x256-class.py --ckpt-path Latte-XL-2-256x256-ucf101.pt
_base_ = ["16x256x256.py"]

model = dict(condition="label_101", from_pretrained="Latte-XL-2-256x256-ucf101.pt")
text_encoder = dict(_delete_=True, type="classes", num_classes=101)
prompt = ["0", "5", "100"]  # applying eye makeup, baseball pitch, playing with a yo-yo
