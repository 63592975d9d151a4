"""What every command does to the files it finds: arguments, what the one line says, and which files may change.

The folder of each case, see `cli/test_cli_files.py`:

    digit.png 8x8 grey; same.png a hard link and link.png a symbolic link to it
    nosuffix and named.ddcm its copies
    digit.ddcm made by `digits` (mode 0640); link.ddcm a symbolic link to it; locked.ddcm its read-only copy
    linkpng.png a symbolic link to digit.ddcm; hole.ddcm a symbolic link to nothing; empty.ddcm, empty.png
    old.png another picture (mode 0600); old.jpg; jpeg.png a JPEG; text.txt, text.ddcm, text.png, text.json text
    foreign.ddcm, dots.ddcm, hub.ddcm, escape.ddcm of models "/srv/model", "../model", "owner/name", "\x1b[31mred"
    model/ a copy of `digits`; odd/ the same with a ddcm.json that is text; images/ with digit.png; sub/
    mixed/ with 0000.png a JPEG; kept/ with digit_1_1.ddcm text; out_measured.png and taken.ddcm text
"""

MODEL = ["--model", "digits"]
CODING = ["--preset", "ddcm", "-T", "3", "-K", "16", "-q"]
COMPRESS = ["compress", "digit.png"]
RESTORE = ["restore", "--task", "denoise", *MODEL, *CODING]
EDIT = ["edit", "--target-label", "1", "--t-edit", "1", *CODING]
GENERATE = ["generate", *MODEL, *CODING]
BENCH = ["bench", "--quick", "--device", "cpu", "--op", "noise", "--backend", "fresh"]
CALIBRATE = ["calibrate", "--images", "images", "--most", "1", "-q"]

#: (arguments, what the line says): status 2, one line on standard error, every file untouched.
REFUSED = [
    # an input is never overwritten, whatever it is called and whatever is forced
    ([*COMPRESS, "digit.png"], "ending of an image"),
    ([*COMPRESS, "old.png"], "ending of an image"),
    ([*COMPRESS, "new.JPG"], "ending of an image"),
    ([*COMPRESS, "old.png", "old.jpg"], "name a folder"),
    ([*COMPRESS, "old.png", "nosuffix"], "name a folder"),
    (["decompress", "digit.ddcm", "link.ddcm", "new.png"], "name a folder"),
    ([*COMPRESS, "digit.png", "--force"], "same file"),
    ([*COMPRESS, "./sub/../digit.png", "--force"], "same file"),
    ([*COMPRESS, "same.png", "--force"], "same file"),
    ([*COMPRESS, "link.png", "--force"], "same file"),
    (["compress", "link.png", "digit.png", "--force"], "same file"),
    (["compress", "nosuffix", "nosuffix"], "same file"),
    (["compress", "nosuffix", "nosuffix", "--force"], "same file"),
    ([*COMPRESS, "named.ddcm", "--mask", "named.ddcm", "--force"], "same file"),
    (["decompress", "digit.ddcm", "digit.ddcm"], "image format"),
    (["decompress", "digit.ddcm", "digit.ddcm", "--format", "png", "--force"], "same file"),
    (["decompress", "link.ddcm", "digit.ddcm", "--format", "png", "--force"], "same file"),
    (["decompress", "digit.ddcm", "linkpng.png", "--force"], "same file"),
    ([*RESTORE, "digit.png", "digit.png", "--force"], "same file"),
    ([*RESTORE, "named.ddcm", "named.png", "--force"], "same file"),
    ([*RESTORE, "digit.png", "old.png", "--mask", "old.png", "--force"], "same file"),
    ([*RESTORE, "out_measured.png", "out.png", "--simulate", "--force"], "same file"),
    (["restore", "--restorer", "text.png", *MODEL, "digit.png", "text.png", "--force"], "same file"),
    ([*EDIT, *MODEL, "digit.png", "--output-dir", ".", "--force"], "same file"),
    ([*EDIT, *MODEL, "digit.png", "--output-dir", "sub/..", "--force"], "same file"),
    # a file of another kind stays
    ([*COMPRESS, "text.ddcm"], "not a .ddcm file"),
    ([*COMPRESS, "text.txt"], "not a .ddcm file"),
    ([*COMPRESS, "named.ddcm"], "not a .ddcm file"),
    ([*COMPRESS, "locked.ddcm"], "read-only"),
    (["decompress", "digit.ddcm", "text.png"], "not a PNG picture"),
    (["decompress", "digit.ddcm", "jpeg.png"], "not a PNG picture"),
    (["decompress", "digit.ddcm", "old.jpg", "--format", "png"], "not a PNG picture"),
    (["decompress", "digit.ddcm", "locked.ddcm", "--format", "png"], "not a PNG picture"),
    ([*RESTORE, "digit.png", "taken.png"], "not a .ddcm file"),
    ([*RESTORE, "digit.png", "jpeg.png"], "not a PNG picture"),
    ([*RESTORE, "digit.png", "out.png", "--simulate"], "not a PNG picture"),
    ([*EDIT, "digit.ddcm", "--output-dir", "kept"], "not a .ddcm file"),
    ([*EDIT, *MODEL, "digit.png", "--output-dir", "kept"], "not a .ddcm file"),
    ([*GENERATE, "--output-dir", "mixed"], "not a PNG picture"),
    ([*CALIBRATE, "--model", "odd"], "not JSON"),
    ([*BENCH, "--json", "text.txt"], "not JSON"),
    ([*BENCH, "--plot", "digit.ddcm"], "not a PNG picture"),
    ([*BENCH, "--plot", "jpeg.png"], "not a PNG picture"),
    # a place that cannot be written
    # many: a folder as the output, and results of different names
    (["compress", "images", "new.ddcm"], "name a folder"),
    (["compress", "sub", "new"], "holds no images"),
    (["compress", "none*.png", "new"], "holds no images"),
    (["compress", "none.png", "images", "new"], "No such file"),
    (["compress", "digit.png", "images", "new"], "both become digit"),
    (["compress", "text.tar", "new"], "No such file"),
    (["compress", "-", "images", "new"], "stands for one file"),
    (["compress", "images", "-"], "stands for one file"),
    (["compress", "images", "new", "--mask", "old.png"], "--mask is for one input"),
    (["compress", "images", "new", "--limit", "0"], "--limit is 0"),
    (["compress", "images", "new", "--workers", "4/4"], "--workers is '4/4'"),
    (["compress", "images", "new", "--actors", "2"], "--engine ray"),
    (["compress", "images", "new", "--dataset", "x", "--bpp", "-1"], "data set"),
    ([*COMPRESS, "new.ddcm", "--limit", "3"], "--limit is for many"),
    ([*COMPRESS, "new.ddcm", "--dry-run"], "--dry-run is for many"),
    (["decompress", "images", "new"], "holds no .ddcm files"),
    (["decompress", "digit.ddcm", "digit.ddcm", "new"], "both become digit"),
    (["decompress", "digit.ddcm", "sub", "--format", "ending"], "image.ending"),
    ([*COMPRESS, "no/where.ddcm"], "no such folder"),
    ([*COMPRESS, "text.txt/a.ddcm"], "Not a directory"),
    ([*COMPRESS, "x" * 300 + ".ddcm"], "File name too long"),
    ([*COMPRESS, "loop.ddcm"], "cannot use loop.ddcm"),
    (["decompress", "digit.ddcm", "no/where.png"], "no such folder"),
    (["decompress", "digit.ddcm", "new.ending"], "image format"),
    (["decompress", "digit.ddcm", "new.png", "--format", "ending"], "image.ending"),
    ([*RESTORE, "digit.png", "no/where.png"], "no such folder"),
    ([*RESTORE, "digit.png", "new.ddcm"], "image format"),
    ([*RESTORE, "digit.png", "-"], "name a file"),
    ([*RESTORE, "digit.png", "/dev/null"], "name a file"),
    ([*RESTORE, "digit.png", "x" * 251 + ".jpg"], "File name too long"),
    ([*EDIT, "digit.ddcm", "--output-dir", "text.txt"], "name a folder"),
    ([*EDIT, "digit.ddcm", "--output-dir", "text.txt/new"], "Not a directory"),
    ([*EDIT, "digit.ddcm", "--output-dir", "y" * 300], "File name too long"),
    ([*EDIT, *MODEL, "-", "--output-dir", "new"], "is no file"),
    ([*GENERATE, "--output-dir", "text.txt"], "name a folder"),
    ([*GENERATE, "--output-dir", "new", "-n", "0"], "-n is 0"),
    ([*GENERATE, "--output-dir", "new", "-n", "1000000000"], "-n is 1000000000"),
    ([*CALIBRATE, "--model", "digit.png"], "no local folder"),
    ([*CALIBRATE, "--model", "model", "--images", "text.txt"], "no such folder of images"),
    ([*CALIBRATE, "--model", "model", "--most", "-1"], "--most is -1"),
    ([*BENCH, "--json", "no/where.json"], "no such folder"),
    ([*BENCH, "--json", "new", "--plot", "new"], "two results"),
    # inputs
    (["compress", "text.png", "new.ddcm"], "cannot read"),
    (["compress", "none.png", "new.ddcm"], "No such file"),
    (["compress", "/dev/null", "new.ddcm"], "cannot read"),
    # a picture's size is looked at before it is unpacked
    ([*COMPRESS, "new.ddcm", "--max-pixels", "63"], "8x8 pixels are more than 63"),
    ([*COMPRESS, "new.ddcm", "--mask", "old.png", "--max-pixels", "63"], "8x8 pixels are more than 63"),
    ([*RESTORE, "digit.png", "new.png", "--max-pixels", "63"], "8x8 pixels are more than 63"),
    ([*EDIT, *MODEL, "digit.png", "--output-dir", "new", "--max-pixels", "63"], "8x8 pixels are more than 63"),
    ([*CALIBRATE, "--model", "model", "--max-pixels", "63"], "8x8 pixels are more than 63"),
    (["decompress", "text.txt", "new.png"], "not a .ddcm file"),
    (["decompress", "/dev/zero", "new.png"], "not a .ddcm file"),
    (["info", "text.txt"], "not a .ddcm file"),
    (["info", "/dev/zero"], "not a .ddcm file"),
    (["info", "sub"], "Is a directory"),
    (["info", "none.ddcm"], "No such file"),
    ([*RESTORE, "none.png", "new.png"], "No such file"),
    ([*RESTORE, "sub", "new.png"], "Is a directory"),
    ([*EDIT, "none.ddcm", "--output-dir", "new"], "No such file"),
    ([*EDIT, "sub", "--output-dir", "new"], "is no file"),
    # a file never decides what is loaded
    (["decompress", "foreign.ddcm", "new.png"], "--model"),
    (["decompress", "dots.ddcm", "new.png"], "--model"),
    (["decompress", "hub.ddcm", "new.png"], "'owner/name'"),
    (["decompress", "escape.ddcm", "new.png"], r"\x1b[31mred"),
    (["decompress", "hub.ddcm", "new.png", "--model", "gaussian-field"], "fingerprint"),
    ([*EDIT, "foreign.ddcm", "--output-dir", "new"], "--model"),
    ([*EDIT, "dots.ddcm", "--output-dir", "new"], "--model"),
    ([*EDIT, "hub.ddcm", "--output-dir", "new"], "'owner/name'"),
    ([*EDIT, "digit.ddcm", "--output-dir", "new", "--model", "photo"], "photo"),
    (["decompress", "x/T=10_in999-0_K=16_M=1_C=1_model=sd/x.bin", "new.png"], "'stabilityai/sd'"),
    (["restore", "--restorer", "old.jpg", *MODEL, "digit.png", "new.png"], "--trust"),
    # what is not here, and numbers that are none
    *(([*COMPRESS, "new.ddcm", "--device", name], name) for name in ("mps", "xpu", "meta", "cuda:9", "toaster", "")),
    ([*COMPRESS, "new.ddcm", "--dtype", "float8"], "float8"),
    *(([*COMPRESS, "new.ddcm", "--seed", n], "no seed") for n in (str(2**64), "-1", "x", "1" * 5000)),
    *(([*GENERATE, "--output-dir", "new", "--draw-seed", n], "no seed") for n in (str(2**64), "-1")),
    ([*RESTORE, "digit.png", "new.png", "--draw-seed", str(2**64)], "no seed"),
    *(([*COMPRESS, "new.ddcm", *MODEL, "-K", n], "K") for n in ("0", "-5", str(2**32 + 1), "many")),
    *(([*COMPRESS, "new.ddcm", *MODEL, "-T", n], "T") for n in ("0", "-5", "100000000", "2.5")),
    ([*COMPRESS, "new.ddcm", *MODEL, "--label", "1", "--prompt", "\udcff"], "prompt is not UTF-8"),
    ([*COMPRESS, "new.ddcm", "--model", "\udcff\x1b[2J"], r"\udcff\x1b[2J"),
    ([*COMPRESS, "new.ddcm", "--unknown"], "--unknown"),
    (["inflate"], "inflate"),
]

#: (arguments, files that change or appear): status 0; the others are untouched, links stay links, modes are kept.
ALLOWED = [
    ([*COMPRESS, "new.ddcm", *MODEL, *CODING], {"new.ddcm"}),
    ([*COMPRESS, "digit.ddcm", *MODEL, *CODING, "--seed", "9"], {"digit.ddcm"}),
    ([*COMPRESS, "link.ddcm", *MODEL, *CODING, "--seed", "9"], {"digit.ddcm"}),
    ([*COMPRESS, "hole.ddcm", *MODEL, *CODING], {"hidden.ddcm"}),
    ([*COMPRESS, "empty.ddcm", *MODEL, *CODING], {"empty.ddcm"}),
    ([*COMPRESS, "text.ddcm", *MODEL, *CODING, "--force"], {"text.ddcm"}),
    ([*COMPRESS, "old.png", *MODEL, *CODING, "--force"], {"old.png"}),
    ([*COMPRESS, "locked.ddcm", *MODEL, *CODING, "--seed", "9", "--force"], {"locked.ddcm"}),
    ([*COMPRESS, "/dev/null", *MODEL, *CODING], set()),
    ([*COMPRESS, "z" * 250 + ".ddcm", *MODEL, *CODING], {"z" * 250 + ".ddcm"}),
    ([*COMPRESS, "\udcff.ddcm", *MODEL, *CODING], {"\udcff.ddcm"}),
    (["decompress", "digit.ddcm", "new.png"], {"new.png"}),
    ([*COMPRESS, "sub", *MODEL, *CODING], {"sub/digit.ddcm", "sub/ddcm-manifest.jsonl"}),
    (["compress", "images", "a/b", *MODEL, *CODING], {"a/b/digit.ddcm", "a/b/ddcm-manifest.jsonl"}),
    (
        ["compress", "images/*.png", "old.png", "new", *MODEL, *CODING],
        {"new/digit.ddcm", "new/old.ddcm", "new/ddcm-manifest.jsonl"},
    ),
    (["decompress", "digit.ddcm", "sub", "--format", "webp"], {"sub/digit.webp", "sub/ddcm-manifest.jsonl"}),
    (["decompress", "digit.ddcm", "old.png", "-q"], {"old.png"}),
    (["decompress", "digit.ddcm", "empty.png"], {"empty.png"}),
    (["decompress", "digit.ddcm", "jpeg.png", "--force"], {"jpeg.png"}),
    (["decompress", "digit.ddcm", "new", "--format", "webp"], {"new"}),
    (["decompress", "digit.ddcm", "/dev/null"], set()),
    (["decompress", "hub.ddcm", "new.png", "--model", "digits"], {"new.png"}),
    ([*EDIT, "hub.ddcm", "--model", "digits", "--output-dir", "new"], {"new/hub_1_1.png", "new/hub_1_1.ddcm"}),
    ([*EDIT, "digit.ddcm", "--output-dir", "."], {"digit_1_1.png", "digit_1_1.ddcm"}),
    (
        [*EDIT, *MODEL, "digit.png", "--output-dir", "kept", "--force"],
        {"kept/digit.png", "kept/digit.ddcm", "kept/digit_1_1.png", "kept/digit_1_1.ddcm"},
    ),
    ([*RESTORE, "digit.png", "new.png"], {"new.png", "new.ddcm"}),
    ([*RESTORE, "digit.png", "old.png", "--simulate"], {"old.png", "old.ddcm", "old_measured.png"}),
    ([*GENERATE, "--output-dir", "mixed", "--force"], {"mixed/0000.png", "mixed/0000.ddcm"}),
    ([*GENERATE, "--output-dir", "a/b", "-n", "2"], {f"a/b/000{i}.{e}" for i in range(2) for e in ("png", "ddcm")}),
    (["info", "escape.ddcm"], set()),
    ([*CALIBRATE, "--model", "model"], {"model/ddcm.json"}),
    ([*BENCH, "--json", "new.json", "--plot", "old.png"], {"new.json", "old.png"}),
    ([*BENCH, "--json", "text.json", "--force"], {"text.json"}),
]  # fmt: skip
