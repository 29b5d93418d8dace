"""Files beside the pages that pages link to, as they do on GitHub, are a part of the site: pictures, runs, recipes."""

from os.path import relpath
from pathlib import Path

from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).parent.parent
LINKED = ("docs/*.png", "docs/*.csv", "docs/notebooks/*.ipynb", "recipes/**/*.yaml")


def on_files(files, config):
    """Add them, each under the path that a page writes, at a place inside the site."""
    for path in (found for pattern in LINKED for found in sorted(ROOT.glob(pattern))):
        name = path.relative_to(ROOT).as_posix()
        written = relpath(path, config.docs_dir).replace("\\", "/")
        file = File.generated(config, written, abs_src_path=str(path), inclusion=InclusionLevel.INCLUDED)
        file.dest_uri = f"files/{name}"
        files.append(file)
    return files
