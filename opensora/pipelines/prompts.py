"""Prompt template and negative prompt of the published Open-Sora-Plan v1.3 weights, white space included."""

from opensora.errors import UserError

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
