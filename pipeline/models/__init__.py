"""Networks, one family a file. They know their parameters and their sizes, and nothing of losses or data.

GENERATORS names each generator's configuration as it stands in a run's config.json.
"""

from pipeline.models.cips import CIPSGeneratorConfig
from pipeline.models.dcgan import DCGANGeneratorConfig
from pipeline.models.mspie import MSPIEGeneratorConfig
from pipeline.models.pggan import PGGANGeneratorConfig
from pipeline.models.singan import SinGANGeneratorConfig
from pipeline.models.vae import VAEGeneratorConfig

GeneratorConfig = (
    MSPIEGeneratorConfig
    | CIPSGeneratorConfig
    | PGGANGeneratorConfig
    | DCGANGeneratorConfig
    | SinGANGeneratorConfig
    | VAEGeneratorConfig
)

GENERATORS: dict[str, type[GeneratorConfig]] = {
    "mspie": MSPIEGeneratorConfig,
    "cips": CIPSGeneratorConfig,
    "pggan": PGGANGeneratorConfig,
    "dcgan": DCGANGeneratorConfig,
    "singan": SinGANGeneratorConfig,
    "vae": VAEGeneratorConfig,
}
