"""The page of `ddcm app`: what it computes (work), which needs no Gradio, and the page itself (page)."""
