"""The Python package for pip: a machine without ROS (training, tests) installs the same sources as colcon does."""

from glob import glob
from pathlib import Path

from setuptools import find_packages, setup


def shipped(directory):
    """A directory's files, and those below it, as they lie below share/ki_ros."""
    places = [Path(directory), *(path for path in Path(directory).rglob("*") if path.is_dir())]
    return [(f"share/ki_ros/{place}", [str(file) for file in place.iterdir() if file.is_file()]) for place in places]


setup(
    name="ki_ros",
    version="0.1.0",
    description="A Knowledge-Insulated vision-language-action policy on a DROID robot",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["ki_ros", "ki_ros.*"]),
    package_data={"ki_ros.model.engine.cuda": ["*.cu", "*.cuh"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/ki_ros"]),
        ("share/ki_ros", ["package.xml"]),
        *shipped("config"),
        ("share/ki_ros/msg", glob("msg/*.msg")),
        *shipped("models"),
    ],
    install_requires=[
        "numpy>=1.26,<3",
        "opencv-python-headless>=4.8,<6",
        "pillow>=10,<14",
        "pyyaml>=6,<7",
        "rich>=13,<16",
        "safetensors>=0.4.3,<1",
        "sentencepiece>=0.2,<1",
        "tokenizers>=0.20,<1",
        "torch>=2.6,<3",
        "transformers>=4.53,<6",
        "tyro>=0.9,<2",
    ],
    extras_require={
        # rosbag2's formats, LeRobot's tables and videos. mcap ends chunks on demand from 1.6 on.
        "data": [
            "av>=12,<17",
            "lz4>=4,<5",
            "matplotlib>=3.8,<4",
            "mcap>=1.6,<2",
            "pyarrow>=16,<27",
            "rosbags>=0.11,<0.12",
            "zstandard>=0.22,<1",
        ],
        # The MJCF models and meshes come with the gym-hil wheel, which scripts/setup installs without its dependencies.
        "sim": ["matplotlib>=3.8,<4", "mujoco>=3.2,<3.9"],
        "train": ["matplotlib>=3.8,<4", "peft>=0.15,<1", "pydantic>=2.7,<3", "tensorboard>=2.16,<3"],
        "test": [
            "hypothesis>=6.100,<7",
            "scipy>=1.11,<2",
            "import-linter>=2,<3",
            "pytest>=8,<10",
            "pytest-timeout>=2.3,<3",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.6,<1",
        ],
    },
    entry_points={"console_scripts": ["ki-ros = ki_ros.cli:main"]},
)
