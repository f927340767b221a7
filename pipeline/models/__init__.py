"""Networks, one family a file. They know their parameters and their sizes, and nothing of losses or data.

GENERATORS names each generator's configuration as it stands in a run's config.json.
"""

from pipeline.models.cips import CIPSGeneratorConfig
from pipeline.models.mspie import MSPIEGeneratorConfig

GENERATORS: dict[str, type[MSPIEGeneratorConfig] | type[CIPSGeneratorConfig]] = {
    "mspie": MSPIEGeneratorConfig,
    "cips": CIPSGeneratorConfig,
}
