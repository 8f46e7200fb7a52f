"""A node of ComfyUI that makes videos with a running studio (`opensora serve`): text, or text and an image, to frames.

It needs what ComfyUI has (Python, numpy, torch, Pillow and PyAV), and neither this project nor MindSpore. Packages are
imported when a video is made.
"""

from __future__ import annotations

import io
import json
import secrets
import time
import urllib.error
import urllib.request

ADDRESS = "http://127.0.0.1:7860"
TIMEOUT = 60.0  # seconds without an answer
POLL = 0.5  # seconds
LARGEST_SEED = 2**32 - 1


class OpenSoraVideo:
    """Frames of a video as a batch of images."""

    CATEGORY = "video/opensora"
    FUNCTION = "make"
    RETURN_TYPES = ("IMAGE", "FLOAT")
    RETURN_NAMES = ("frames", "fps")

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {
            "required": {
                "prompt": ("STRING", {"multiline": True, "default": "a red circle moves right on a blue background"}),
                "address": ("STRING", {"default": ADDRESS}),
                "size": ("STRING", {"default": "64x64"}),
                "num_frames": ("INT", {"default": 17, "min": 1, "max": 1001, "step": 4}),
                "steps": ("INT", {"default": 50, "min": 1, "max": 1000}),
                "guidance_scale": ("FLOAT", {"default": 4.0, "min": 0.0, "max": 100.0, "step": 0.5}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1}),
            },
            "optional": {
                "image": ("IMAGE",),
                "last_image": ("IMAGE",),
                "negative_prompt": ("STRING", {"multiline": True, "default": ""}),
                "token": ("STRING", {"default": ""}),
            },
        }

    def make(self, prompt: str, **inputs):
        """The function of the node: a float32 tensor (T, H, W, 3) in [0, 1], and the frame rate."""
        import torch

        try:
            from comfy.utils import ProgressBar

            bar = ProgressBar(100)
            self.report = lambda done, total: bar.update_absolute(done, total)
        except ImportError:  # another program that runs nodes
            pass
        frames, fps = self.pixels(prompt, **inputs)
        return torch.from_numpy(frames), fps

    def report(self, done: int, total: int) -> None:
        """Called with the progress; `make` replaces it."""

    def pixels(self, prompt, address, size, num_frames, steps, guidance_scale, seed, image=None, last_image=None,
               negative_prompt="", token=""):  # fmt: skip
        """The frames as float32 (T, H, W, 3) in [0, 1], and the frame rate.

        Args:
            image, last_image: float (B, H, W, 3) in [0, 1]; the first of each is a given frame.

        Raises:
            RuntimeError: the studio cannot be reached, or does not make this video.
        """
        studio = _Studio(address, token)
        given = [(image, 0), (last_image, -1)]
        frames = [
            {"file": studio.upload(_png(batch[0])), "frame": place} for batch, place in given if batch is not None
        ]
        job = studio.json(
            "POST",
            "/v1/videos",
            {
                "prompt": prompt,
                "size": size,
                "num_frames": num_frames,
                "steps": steps,
                "guidance_scale": guidance_scale,
                "seed": seed & LARGEST_SEED,  # ComfyUI's seeds have 64 bits
                "frames": frames,
                **({"negative_prompt": negative_prompt} if negative_prompt else {}),
            },
        )
        while job["status"] in ("queued", "in_progress"):
            time.sleep(POLL)
            job = studio.json("GET", f"/v1/videos/{job['id']}")
            self.report(job["progress"], 100)
        if job["status"] != "completed":
            raise RuntimeError((job["error"] or {}).get("message") or f"the video was {job['status']}")
        content = studio.get(f"/v1/videos/{job['id']}/content")
        return _decoded(content, job["kind"]), float(job["fps"])


class _Studio:
    def __init__(self, address: str, token: str):
        self.address = address.rstrip("/")
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    def get(self, path: str) -> bytes:
        return self._request("GET", path, None, {})

    def json(self, method: str, path: str, body=None):
        content = None if body is None else json.dumps(body).encode()
        return json.loads(self._request(method, path, content, {"Content-Type": "application/json"}))

    def upload(self, png: bytes) -> str:
        """The id of an uploaded image."""
        boundary = secrets.token_hex(16)
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="image.png"\r\n\r\n'
        body = head.encode() + png + f"\r\n--{boundary}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "X-Requested-With": "opensora"}
        return json.loads(self._request("POST", "/v1/files", body, headers))["id"]

    def _request(self, method: str, path: str, body, headers: dict) -> bytes:
        request = urllib.request.Request(self.address + path, body, {**self.headers, **headers}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            try:
                message = json.load(error)["error"]["message"]
            except (ValueError, KeyError, TypeError):
                message = f"{self.address} answered with status {error.code}"
            raise RuntimeError(message) from error
        except OSError as error:
            raise RuntimeError(f"{self.address}: no studio answers ({error}); start it with opensora serve") from error


def _png(image) -> bytes:
    """A PNG of an image, float (H, W, 3) in [0, 1]."""
    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray((np.asarray(image).clip(0, 1) * 255).round().astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _decoded(content: bytes, kind: str):
    """float32 (T, H, W, 3) in [0, 1] of an mp4, or of a jpg as one frame."""
    import numpy as np

    if kind == "image":
        from PIL import Image

        frames = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))[None]
    else:
        import av

        with av.open(io.BytesIO(content)) as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return frames.astype(np.float32) / 255


NODE_CLASS_MAPPINGS = {"OpenSoraVideo": OpenSoraVideo}
NODE_DISPLAY_NAME_MAPPINGS = {"OpenSoraVideo": "Open-Sora-Plan video"}
