"""A software bill of materials (CycloneDX 1.6 JSON) from the lock file.

python .ci/sbom.py constraints.txt > sbom.json

One component for each pinned version; its licence as the installed package declares it, where it is installed in that
version. The same lock and environment give the same bytes: no time, no serial number, no paths.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

_PIN = re.compile(r"([A-Za-z0-9._-]+)==([^\s;#]+)")


def pinned(lock: str) -> dict[str, str]:
    """Versions by normalised name. Raises ValueError for a line that pins nothing."""
    found = {}
    for line in (line.strip() for line in lock.splitlines()):
        if not line or line.startswith("#"):
            continue
        pin = _PIN.fullmatch(line)
        if pin is None:
            raise ValueError(f"not name==version: {line}")
        found[re.sub(r"[-_.]+", "-", pin[1]).lower()] = pin[2]
    return dict(sorted(found.items()))


def licences(name: str, version: str) -> list[dict[str, Any]]:
    """What the installed package declares: an SPDX expression, else its classifiers, else a short licence field."""
    try:
        about = distribution(name).metadata
    except PackageNotFoundError:
        return []
    if about["Version"].partition("+")[0] != version.partition("+")[0]:
        return []
    if expression := about["License-Expression"]:
        return [{"expression": expression}]
    classifiers = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    names = [c for c in classifiers if c != "OSI Approved"] or [about["License"] or ""]
    return [{"license": {"name": n}} for n in sorted(set(names)) if n and "\n" not in n]


def component(name: str, version: str) -> dict[str, Any]:
    """One library, named by its package URL."""
    url = f"pkg:pypi/{name}@{version}"
    declared = licences(name, version)
    found = {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url}
    return {**found, "licenses": declared} if declared else found


def bill(lock: str) -> dict[str, Any]:
    """The whole document."""
    components = [component(*pin) for pin in pinned(lock).items()]
    version = distribution("msa-plugin").version
    root = {"type": "library", "bom-ref": "msa-plugin", "name": "msa-plugin", "version": version}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {**root, "licenses": [{"expression": "Apache-2.0"}]}},
        "components": components,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(bill(Path(sys.argv[1]).read_text(encoding="utf-8")), indent=1) + "\n")
