//! What several commands do first: choose the device, open a model as the flags name it; and say
//! what rows held.

use lowrank_data::Loaded;
use lowrank_engine::{Device, Isa};
use lowrank_model::Generate;
use lowrank_run::device::NumericChoices;
use lowrank_run::generation::Asked;
use lowrank_run::loaded::LoadedModel;
use lowrank_run::settings::RowSettings;
use lowrank_run::{RunError, RunResult};

use crate::args::{AdapterArgs, CommonArgs, ModelArgs};
use crate::output;

/// The processor with the threads asked for. `LOWRANK_ISA` chooses another instruction set than the
/// best, for comparisons.
pub fn device(common: &CommonArgs, numerics: NumericChoices) -> RunResult<Device> {
    let isa = instruction_set()?;
    lowrank_run::device::device(isa, numerics.on(isa)?, common.threads)
}

/// The instruction set to compute with.
pub fn instruction_set() -> RunResult<Isa> {
    match std::env::var("LOWRANK_ISA") {
        Err(_) => Ok(Isa::best()),
        Ok(name) => {
            let found = Isa::from_name(&name).filter(|isa| isa.is_available());
            found.ok_or_else(|| {
                let names: Vec<_> = Isa::available().iter().map(|isa| isa.name()).collect();
                RunError::usage(format!(
                    "LOWRANK_ISA is `{name}`, expected one of {}",
                    names.join(", ")
                ))
            })
        }
    }
}

/// The model that flags name, ready to predict.
pub fn open_model(
    model: &ModelArgs,
    adapter: &AdapterArgs,
    rows: &RowSettings,
    device: &Device,
) -> RunResult<LoadedModel> {
    LoadedModel::open(&model.settings(), &adapter.settings()?, rows, device)
}

/// How a model generates; what a user should know of both is said on standard error.
pub fn decoding(asked: Asked, loaded: &LoadedModel, common: &CommonArgs) -> RunResult<Generate> {
    let decoding = asked.beside(loaded)?;
    if !common.is_quiet() {
        let notes = loaded.notes.iter().chain(&decoding.notes);
        notes.for_each(output::note);
    }
    Ok(decoding.options)
}

/// Says on standard error what a user should know of rows that were read.
pub fn say_notes(path: &str, loaded: &Loaded, common: &CommonArgs) {
    if !common.is_quiet() {
        let notes = loaded.report.notes.iter();
        notes.for_each(|note| output::note(format_args!("{path}: {note}")));
    }
}
