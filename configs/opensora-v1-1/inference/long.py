# Four clips one after the other, beginning with a picture; what is not here is as in video.py:
# python scripts/inference-long.py THIS_FILE --ckpt-path DIR --reference-path picture.png
_base_ = ["video.py"]

loop = 4
condition_frame_length = 4  # frames that a clip takes over from the one before
prompt = ["|0|a jeep drives through a forest|2|a jeep drives through a desert"]
reference_path = ["picture.png"]  # of each prompt; several are joined by ;
mask_strategy = ["0"]  # the picture is the first frame
