"""Networks, one family a file. They know their parameters and their sizes, and nothing of losses or data.

GENERATORS names each generator's configuration as it stands in a run's config.json.
"""

from pipeline.models.cips import CIPSGeneratorConfig
from pipeline.models.mspie import MSPIEGeneratorConfig
from pipeline.models.singan import SinGANGeneratorConfig

GENERATORS: dict[str, type[MSPIEGeneratorConfig] | type[CIPSGeneratorConfig] | type[SinGANGeneratorConfig]] = {
    "mspie": MSPIEGeneratorConfig,
    "cips": CIPSGeneratorConfig,
    "singan": SinGANGeneratorConfig,
}
