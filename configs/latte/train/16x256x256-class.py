# Training of Latte on videos of 101 classes: 16 frames of 256x256. The text of a row of the csv file is the number of
# its class. Other fields are inherited.
#     python scripts/train.py configs/latte/train/16x256x256-class.py --data-path data.csv
_base_ = ["16x256x256.py"]

model = dict(condition="label_101")
text_encoder = dict(_delete_=True, type="classes", num_classes=101)
