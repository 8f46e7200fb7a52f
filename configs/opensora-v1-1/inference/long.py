# Long video with Open-Sora v1.1 (STDiT2): four clips, concatenated, each conditioned on the end of the previous one. A
# reference image is the first frame. The other fields are inherited from video.py.
#     python scripts/inference-long.py configs/opensora-v1-1/inference/long.py --ckpt-path DIR
_base_ = ["video.py"]

loop = 4
condition_frame_length = 4  # conditioning frames of a clip: the last frames of the previous clip
prompt = ["|0|a sailing ship crosses a calm bay|2|a sailing ship in a storm"]
reference_path = ["assets/images/condition/ship.png"]  # one entry per prompt; ; separates several references
mask_strategy = ["0"]  # the image is the first frame
