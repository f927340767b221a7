"""Which losses update which net, and when. A method is one file here and one line in KINDS."""

from pipeline.families.cips import CIPSConfig
from pipeline.families.dcgan import DCGANConfig
from pipeline.families.mspie import MSPIEConfig
from pipeline.families.pggan import PGGANConfig
from pipeline.families.singan import SinGANConfig
from pipeline.families.supervised import SupervisedConfig
from pipeline.families.vae import VAEConfig
from pipeline.phases import FamilyConfig

KINDS: dict[str, type[FamilyConfig]] = {
    "mspie": MSPIEConfig,
    "cips": CIPSConfig,
    "pggan": PGGANConfig,
    "dcgan": DCGANConfig,
    "singan": SinGANConfig,
    "vae": VAEConfig,
    "supervised": SupervisedConfig,
}
