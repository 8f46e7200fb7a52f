"""The wording the published weights of Open-Sora-Plan v1.3 were prompted with, white space included."""

POSITIVE = """
    high quality, high aesthetic, {}
    """

NEGATIVE = """
    nsfw, lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, 
    low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry.
    """
