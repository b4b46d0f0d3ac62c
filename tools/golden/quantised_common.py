"""What the scripts of quantised golden files share: their folder, their versions, and the hashes in tests/golden/manifest.json."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2] / "tests/golden"
OUT = ROOT / "quantised"


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def finish(script, seed, packages):
    """Notes what made the files, and writes the hashes of all files of the quantised models anew."""
    notes_file = OUT / "versions.json"
    notes = json.loads(notes_file.read_text()) if notes_file.exists() else {}
    notes[script] = {"seed": seed} | {package: version(package) for package in packages}
    write_json(notes_file, dict(sorted(notes.items())))
    manifest_file = ROOT / "manifest.json"
    manifest = json.loads(manifest_file.read_text())
    files = {name: value for name, value in manifest["files"].items() if not name.startswith("quantised/")}
    for path in sorted(OUT.rglob("*")):
        if path.is_file():
            files[path.relative_to(ROOT).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest["files"] = dict(sorted(files.items()))
    write_json(manifest_file, manifest)
    size = sum(path.stat().st_size for path in OUT.rglob("*") if path.is_file())
    print(f"{size / 1e3:.1f} kB in {OUT.relative_to(ROOT.parent)}")
