"""The studio: a web service that makes videos, and its page.

The service process holds the queue and answers HTTP; it never imports MindSpore. Worker processes load the models and
make the videos. FastAPI, uvicorn and python-multipart are the extra `studio`.
"""
