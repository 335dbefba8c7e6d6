"""An environment of its own for each peer: a peer holds back packages that the others need newer.

What decides the numbers and most of the time has the version of the repository's constraints.txt in every environment (`SAME`); the rest
is as each peer allows.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

PEERS = {"pfl": "pfl==0.6.0", "flower": "flwr[simulation]==1.41.0", "nvflare": "nvflare==2.9.0"}
"""What pip installs for each."""

SAME = ("torch", "transformers", "peft", "numpy", "safetensors", "tokenizers")
"""Of one version in all environments; and psutil, with which processes are found."""

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def pins() -> list[str]:
    """The versions of what is the same in all environments."""
    return [line for line in CONSTRAINTS.read_text().splitlines() if line.split("==")[0] in SAME]


def python_of(peer: str, folder: Path, share: bool) -> Path:
    """The interpreter of a peer's environment in `folder`, which is made if it is not there.

    Args:
        share: packages of the environment that runs this are not installed again where they fit the peer.
    """
    home, python = folder / peer, folder / peer / "bin" / "python"
    if (home / "ready").exists():
        return python
    print(f"making the environment of {peer} in {home}", flush=True)
    venv.create(home, with_pip=True, clear=True)
    constraints = home / "constraints.txt"
    constraints.write_text("\n".join(pins()) + "\n")
    if share:
        site = subprocess.run(
            [python, "-c", "import site; print(site.getsitepackages()[0])"], check=True, stdout=subprocess.PIPE, text=True
        )
        (Path(site.stdout.strip()) / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", constraints]
    subprocess.run([*install, *SAME, "psutil", PEERS[peer]], check=True)
    (home / "ready").touch()
    return python


if __name__ == "__main__":
    for name in PEERS:
        print(python_of(name, Path(sys.argv[1]), share="--share" in sys.argv))
