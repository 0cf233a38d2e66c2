"""Several networks as one: calibrated likelihood, power laws, how to split a memory budget."""

from flatjax.ensembles._calibration import CalibratedNLL as CalibratedNLL
from flatjax.ensembles._calibration import calibrated_nll as calibrated_nll
from flatjax.ensembles._memory_split import Split as Split
from flatjax.ensembles._memory_split import memory_split as memory_split
from flatjax.ensembles._power_laws import PowerLaw as PowerLaw
from flatjax.ensembles._power_laws import fit_power_law as fit_power_law
from flatjax.ensembles._schedules import cyclic_schedule as cyclic_schedule
