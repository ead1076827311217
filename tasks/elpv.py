"""Solar cells in electroluminescence: functional or defective (PyPI `elpv-dataset`).

2,624 photographs; Buerhop-Lutz et al., EU PVSEC 2018; Deitsch et al., Solar Energy 185, 2019.
CC-BY-NC-SA-4.0: installed by the user, never shipped.
"""

import numpy as np
from PIL import Image

from fusionbench.api import Task, TaskData, task
from fusionbench.tasks._sources import halve, one_question, package_folder


@task(
    "elpv",
    version=1,
    family="elpv",
    group="fine",
    needs=("elpv_dataset",),
    get="pip install --no-deps elpv-dataset==1.0.0.post1",
)
class Elpv(Task):
    """Is this solar cell functional or defective? A constant question.

    Defective means a defect probability above one half; as many functional cells are kept. 300 x
    300 pixels are averaged to 150 x 150.
    """

    chance = 0.5

    def load(self) -> TaskData:
        """1,642 grey photographs, named by file."""
        get = "pip install --no-deps elpv-dataset==1.0.0.post1"
        home = package_folder("elpv_dataset", get=get) / "data"
        rows = [line.split() for line in (home / "labels.csv").read_text().splitlines()]
        files = [home / file for file, _, _ in rows]
        names = [f"elpv/{path.stem}" for path in files]
        labels = [int(float(probability) > 0.5) for _, probability, _ in rows]
        images = [halve(np.asarray(Image.open(path).convert("L"))) for path in files]
        return one_question(
            images,
            labels,
            names,
            question="is this solar cell functional or defective?",
            answers=("functional", "defective"),
            sizes={"test": 492, "val": 160},
        )
