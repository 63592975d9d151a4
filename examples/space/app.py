"""The page of ddcm-fast as a Space of the Hugging Face hub; `ddcm app` is the same on one's own machine."""

from ddcm_fast import Limits, load_model
from ddcm_fast.app.page import build, launch

if __name__ == "__main__":
    launch(build(load_model("photo"), Limits(pixels=256**2)))
