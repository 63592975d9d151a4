"""Compress a picture and get it back.

    python examples/codec.py [PICTURE [BPP]]
"""

import sys

from PIL import Image

from ddcm_fast import Codec, load_model

scene = Image.radial_gradient("L").resize((64, 64)).convert("RGB")  # so that the example needs no file
picture = Image.open(sys.argv[1]) if len(sys.argv) > 1 else scene
bpp = float(sys.argv[2]) if len(sys.argv) > 2 else 0.5

codec = Codec(load_model("photo"), progress=None)
coded = codec.encode(picture, bpp=bpp)[0]
print(f"{picture.width}x{picture.height}: {len(coded.data)} bytes, {coded.bpp:.3f} bits a pixel")

decoded = codec.decompress(coded.data)  # what coded.image is, to the last bit on the same machine
assert decoded.tobytes() == coded.image.tobytes()

coarse = codec.decompress(coded.data, first=0.5)  # half of the file is a coarser picture
assert coarse.size == decoded.size
