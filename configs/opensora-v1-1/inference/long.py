# Four clips one after the other, beginning with a picture; what is not here is as in video.py:
# python scripts/inference-long.py THIS_FILE --ckpt-path DIR
_base_ = ["video.py"]

loop = 4
condition_frame_length = 4  # frames that a clip takes over from the one before
prompt = ["|0|a sailing ship crosses a calm bay|2|a sailing ship in a storm"]
reference_path = ["assets/images/condition/ship.png"]  # of each prompt; several are joined by ;
mask_strategy = ["0"]  # the picture is the first frame
