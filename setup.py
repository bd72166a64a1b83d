"""Which packages go into the wheel; everything else is said in pyproject.toml.

Only here because pyproject.toml can either find packages or map a folder to another name, not both: the shipped
configs live in the top-level `configs/` for people to read and edit, and are installed as
`orchestrator/shipped_configs/`, so that `pawl run quickstart` works without a checkout.
"""

from pathlib import Path

from setuptools import find_namespace_packages, setup

SHIPPED_CONFIGS = "orchestrator.shipped_configs"

# Packages of data only (prompt texts, recipes) have no __init__.py: hence the namespace finder.
code = find_namespace_packages(
    include=[
        name
        for top in ("pawl", "orchestrator", "workers", "policies")
        for name in (top, f"{top}.*")
    ],
    exclude=["*.__pycache__"],
)
config_folders = [
    ".".join((SHIPPED_CONFIGS, *folder.relative_to("configs").parts))
    for folder in [Path("configs"), *sorted(Path("configs").rglob("*/"))]
    if folder.is_dir() and folder.name != "__pycache__"
]

setup(packages=[*code, *config_folders], package_dir={SHIPPED_CONFIGS: "configs"})
