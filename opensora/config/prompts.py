"""Prompt templates and negative prompts of the published Open-Sora-Plan weights, white space included."""

from opensora.errors import UserError

POSITIVE_V1_2 = """
    (masterpiece), (best quality), (ultra-detailed), 
    {}. 
    """

POSITIVE = """
    high quality, high aesthetic, {}
    """

NEGATIVE = """
    nsfw, lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, 
    low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry.
    """


def check_template(template: str) -> None:
    """Raises UserError if the template has no placeholder for the prompt."""
    if "{}" not in template:
        raise UserError(f"prompt_template {template!r} has no {{}}, the placeholder for the prompt")
