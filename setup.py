"""fairseq_synth: a --user-dir plugin for fairseq's translation and language models."""

import re
from pathlib import Path

from setuptools import find_packages, setup

PROJECT = "https://github.com/fairseq-synth/fairseq_synth"  # where it is published; CITATION.cff names it, too


def description():
    """README.md with absolute links: where a package index shows it, no files and no headings lie beside it."""

    def absolute(link):
        start, target = link.groups()
        if target.startswith("#"):
            return f"{start}({PROJECT}{target})"
        return f"{start}({PROJECT}/{'raw' if start.startswith('!') else 'blob'}/main/{target})"

    text = (Path(__file__).resolve().parent / "README.md").read_text(encoding="utf-8")
    return re.sub(r"(!?\[[^\[\]]*\])\((?!https?:)([^()\s]+)\)", absolute, text)


setup(
    name="fairseq-synth",
    version="0.1.0",
    description="Synthesizer attention, adaptive span and frozen parts for fairseq translation and language models",
    long_description=description(),
    long_description_content_type="text/markdown",
    author="The fairseq_synth authors",
    license="MIT",
    url=PROJECT,
    project_urls={
        "Changelog": f"{PROJECT}/blob/main/CHANGELOG.md",
        "Documentation": f"{PROJECT}/blob/main/README.md",
        "Issues": f"{PROJECT}/issues",
    },
    python_requires=">=3.8",
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Typing :: Typed",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    # Nothing but the plugin: examples/ and user_dir_tests/ stay in the checkout. Installed, the
    # package lies beside fairseq's, which is where fairseq looks for `--user-dir fairseq_synth`.
    packages=find_packages(include=["fairseq_synth", "fairseq_synth.*"]),
    package_data={"fairseq_synth": ["py.typed", "*.md"]},
    install_requires=[
        # fairseq 0.12.2 cannot be imported on Python 3.11; fairseq-fixed is its continuation.
        "fairseq-fixed>=0.12.3; python_version>='3.11'",
        "fairseq==0.12.2; python_version<'3.11'",
        "torch",
        "sacrebleu",
        "sentencepiece",
    ],
    extras_require={
        "test": ["pytest", "hypothesis", "ruff", "mypy", "tensorboard", "matplotlib>=3.7"],
        "plot": ["matplotlib>=3.7"],
    },
    entry_points={"console_scripts": ["fairseq-synth = fairseq_synth.cli:main"]},
)
