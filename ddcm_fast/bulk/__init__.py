"""Many pictures or files into one folder: where they come from, what was done, and the run over them."""
