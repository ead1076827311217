"""Simulated textiles: nominal, with a local defect, or with globally changed weave.

PyPI `conformal-clip-data` (MIT); Megahed et al., 2025, https://arxiv.org/abs/2501.12596, made with
Bui and Apley's spc4sts, Journal of Quality Technology 53(3), 2021.
"""

import numpy as np
from PIL import Image

from fusionbench.api import Task, TaskData, task
from fusionbench.tasks._sources import halve, one_question, package_folder

KINDS = ("nominal", "local", "global")


@task(
    "textile",
    version=1,
    family="textile",
    group="fine",
    needs=("conformal_clip_data",),
    get="pip install conformal-clip-data==0.1.4",
)
class Textile(Task):
    """Is this textile nominal, locally defective or globally changed? A constant question.

    500 of the 1,000 nominal images, so that the three answers are equally frequent; 250 x 250
    pixels are averaged to 62 x 62, so that a packed data set stays small. Linear probes of DINOv2-S
    at 112 px (600 train, 200 test images): best layer 0.69, against 0.70 from 125 x 125.
    """

    chance = 1 / 3

    def load(self) -> TaskData:
        """1,500 grey images, named by folder and file."""
        get = "pip install conformal-clip-data==0.1.4"
        home = package_folder("conformal_clip_data", get=get) / "data" / "textile_images"
        files = [path for kind in KINDS for path in sorted((home / "simulated" / kind).iterdir())]
        names = [f"textile/{path.parent.name}/{path.stem}" for path in files]
        labels = [KINDS.index(path.parent.name) for path in files]
        images = [halve(halve(np.asarray(Image.open(path).convert("L")))) for path in files]
        return one_question(
            images,
            labels,
            names,
            question="is this textile nominal, or is its defect local or global?",
            answers=KINDS,
            sizes={"test": 450, "val": 150},
        )
