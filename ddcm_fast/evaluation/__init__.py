"""Codecs side by side over a folder of images: rates, metrics, curves; and metrics of any two folders."""
