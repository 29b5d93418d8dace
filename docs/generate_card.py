"""Write docs/pages/card: the card of the quickstart as a reader of the Hub sees it, with the depths 26, 23 and 20.

    python docs/generate_card.py        # 20 minutes on 2 cores

Trains by the recipe, publishes to the Hub of the tests on 127.0.0.1 with Xet, loads each revision in a new process with
nothing but transformers, compares depth and logits with the local checkpoint, and keeps the card of `main`.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from hub import WRITE_TOKEN, HubServer
from publishing import command, compare_elsewhere

REPO = "me/SmolLM2-ICD10-trimmed"
DEPTHS = {"depth-26": 26, "depth-23": 23, "main": 20}
PAGE = Path(__file__).parent / "pages" / "card"


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary, HubServer() as server:
        home = Path(temporary)
        folder = home / "SmolLM2-ICD10-trimmed"
        recipe = ROOT / "recipes" / "quickstart.yaml"
        train = [
            sys.executable,
            "-m",
            "trim_trainer.cli",
            "train",
            "--config",
            str(recipe),
            "--output_dir",
            str(folder),
        ]
        subprocess.run([*train, "--save_depths", "26", "23"], check=True)
        said = command(["publish", str(folder), "--repo-id", REPO], server.endpoint, WRITE_TOKEN, home / "hf", True)
        print(said.output, said.errors, sep="\n")
        assert said.status == 0
        compare_elsewhere(server, REPO, folder, DEPTHS, home / "fresh")
        print(f"Loaded with transformers alone, depth and logits as here: {', '.join(DEPTHS)}.")
        PAGE.mkdir(exist_ok=True)
        for name, content in server.repo(REPO).files("main").items():
            if name == "README.md" or name.endswith(".png"):
                (PAGE / name).write_bytes(content)


if __name__ == "__main__":
    main()
