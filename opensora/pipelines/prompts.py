"""The wording the published weights of Open-Sora-Plan v1.3 were prompted with, white space included."""

from opensora.errors import UserError

POSITIVE = """
    high quality, high aesthetic, {}
    """

NEGATIVE = """
    nsfw, lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, 
    low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry.
    """


def check_template(template: str) -> None:
    """UserError unless the prompt has a place in it."""
    if "{}" not in template:
        raise UserError(f"prompt_template {template!r} has no {{}}, where the prompt goes")
