"""A synthetic dataset for training and tests: moving colored shapes with captions, and a classifier that recognizes the
scene in the frames of a video."""
