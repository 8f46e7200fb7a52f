"""PixArt-alpha as a transformer of videos and images, from Open-Sora v1.0."""
