"""The software bill of materials of a release: CycloneDX JSON, the same bytes for the same commit and tools.

It lists what the package asks pip for, what is compiled or linked into the module, and the shipped models
with the SHA-256 of their files. Requirements of the extras are not in it, nor what any of these brings.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from email import message_from_string
from importlib.metadata import version as installed_version

from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement

from release.licenses import LICENSES

_WEIGHTS = "for research only: dove_ext/weights/{}/README.md"
_NVIDIA = ("NVIDIA CUDA Toolkit EULA", "https://docs.nvidia.com/cuda/eula/")


@dataclass(frozen=True)
class Linked:
    """What was linked into the module, and the SHA-256 of its archive if it came from one."""

    name: str
    version: str
    sha256: str | None = None


def sbom(
    metadata: str, models: dict[str, dict[str, str]], linked: Iterable[Linked], commit: str, time: int
) -> str:
    """The document.

    Args:
        metadata: the distribution's PKG-INFO: name, version, licence and requirements are taken from there.
        models: file -> SHA-256 of each shipped model.
        linked: parts of the module that are not this project's: "cudart" and "libgcc"; pybind11 is always.
        commit: 40 hexadecimal digits.
        time: of the commit, in seconds since 1970.

    Raises:
        KeyError: if the package has a requirement whose licence `LICENSES` does not know.
        ValueError: if the document is not valid CycloneDX.
    """
    headers = message_from_string(metadata)
    version = headers["Version"]
    root = Component(
        name=headers["Name"],
        version=version,
        type=ComponentType.LIBRARY,
        bom_ref="dove-ext",
        purl=PackageURL("pypi", name=headers["Name"], version=version),
        description=headers["Summary"],
        licenses=[LicenseExpression(headers["License-Expression"])],
        properties=[Property(name="dove:commit", value=commit)],
    )
    requirements = [Requirement(line) for line in headers.get_all("Requires-Dist", [])]
    parts = [_required(r) for r in requirements if r.marker is None or "extra" not in str(r.marker)]
    parts.append(_built_in(Linked("pybind11", installed_version("pybind11"))))
    parts += [_built_in(part) for part in linked]
    parts += [_model(name, version, files) for name, files in models.items()]
    bom = Bom(
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"dove-ext {version} {commit}"),
        metadata=BomMetaData(component=root, timestamp=datetime.fromtimestamp(time, timezone.utc)),
        components=parts,
    )
    bom.register_dependency(root, parts)
    text = JsonV1Dot6(bom).output_as_string(indent=2) + "\n"
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise ValueError(f"the bill of materials is not valid CycloneDX: {error}")
    return text


def _required(requirement: Requirement) -> Component:
    return Component(
        name=requirement.name,
        type=ComponentType.LIBRARY,
        bom_ref=requirement.name,
        purl=PackageURL("pypi", name=requirement.name),
        scope=ComponentScope.REQUIRED,
        licenses=[LicenseExpression(LICENSES[requirement.name])],
        properties=[Property(name="dove:requirement", value=str(requirement))],
    )


def _built_in(part: Linked) -> Component:
    licenses = {
        "pybind11": LicenseExpression("BSD-3-Clause"),
        "libgcc": LicenseExpression("GPL-3.0-or-later WITH GCC-exception-3.1"),
        "cudart": DisjunctiveLicense(name=_NVIDIA[0], url=XsUri(_NVIDIA[1])),
    }
    how = "headers compiled into" if part.name == "pybind11" else "linked into"
    kind = "pypi" if part.name == "pybind11" else "generic"
    return Component(
        name=part.name,
        version=part.version,
        type=ComponentType.LIBRARY,
        bom_ref=part.name,
        purl=PackageURL(kind, name=part.name, version=part.version),
        licenses=[licenses[part.name]],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=part.sha256)] if part.sha256 else None,
        properties=[Property(name="dove:how", value=f"{how} dove_ext/_C")],
    )


def _model(name: str, version: str, files: dict[str, str]) -> Component:
    card = XsUri(f"dove_ext/weights/{name}/README.md")
    return Component(
        name=name,
        version=version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=name,
        licenses=[DisjunctiveLicense(name=_WEIGHTS.format(name))],
        external_references=[ExternalReference(type=ExternalReferenceType.MODEL_CARD, url=card)],
        components=[
            Component(
                name=f"dove_ext/weights/{name}/{file}",
                type=ComponentType.FILE,
                bom_ref=f"{name}/{file}",
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
            )
            for file, digest in files.items()
        ],
    )
