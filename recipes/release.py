"""Pack exported backbones for a release: an archive and model card each, checksums, an index.

    python recipes/release.py --backbone_dir runs/moco runs/simclr --output_dir release
    python recipes/release.py --backbone_dir runs/study/*/seed-0 --names moco mixco --license mit

writes NAME.tar for each folder, SHA256SUMS and index.md. An archive has a folder NAME with the
weights, their descriptions, the model card README.md, and options.yaml, the options of the run
without the paths of your machine. index.md is a table of what each network is, on which images and
by which command it was trained, and its figures with their protocol. The same exports give the same
bytes.

    cd release && sha256sum -c SHA256SUMS && tar -xf moco.tar
    python -c "from mixco_lightly import load_backbone; print(load_backbone('moco'))"
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mixco_lightly.training.command_line import parse_options
from mixco_lightly.training.errors import fail_in_one_line
from mixco_lightly.training.interrupts import end_in_one_line


@dataclass(frozen=True)
class ReleaseConfig:
    """Options of the release.

    Args:
        backbone_dir: One or more folders of runs, or folders that export_backbone wrote.
        names: Name of each archive. Default: the folders' names.
        license: Licence of the weights in the Hub's spelling, such as cc-by-4.0. Default: the
            model cards state none.
        output_dir: Folder to make.
        overwrite: Whether to replace an earlier release in output_dir.
    """

    backbone_dir: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    license: str | None = None
    output_dir: str = "release"
    overwrite: bool = False


def main() -> None:
    """Writes the files and prints the archives."""
    end_in_one_line()
    config = parse_options(ReleaseConfig, __doc__)
    from mixco_lightly.backbones.release import INDEX_NAME, build_release

    with fail_in_one_line():
        archives = build_release(
            config.backbone_dir,
            config.output_dir,
            names=config.names or None,
            license=config.license,
            overwrite=config.overwrite,
        )
    for archive in archives:
        print(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB")
    print(f"{archives[0].with_name(INDEX_NAME)} lists them.")


if __name__ == "__main__":
    main()
