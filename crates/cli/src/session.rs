//! What several commands do first: choose the device, open a model as the flags name it; and say
//! what rows held.

use lowrank_data::Loaded;
use lowrank_engine::{Device, Isa};
use lowrank_model::Generate;
use lowrank_run::device::NumericChoices;
use lowrank_run::generation::Asked;
use lowrank_run::loaded::LoadedModel;
use lowrank_run::machine::{Machine, Rates};
use lowrank_run::settings::RowSettings;
use lowrank_run::{RunError, RunResult};

use crate::args::{AdapterArgs, CommonArgs, ModelArgs};
use crate::{output, source};

/// The processor with the threads asked for.
pub fn device(common: &CommonArgs, numerics: NumericChoices) -> RunResult<Device> {
    let machine = machine()?;
    let numerics = numerics.on(&machine)?;
    say_warnings(&machine, common);
    lowrank_run::device::device(machine.isa(), numerics, common.threads)
}

/// The same for a model that flags name.
pub fn device_of(
    common: &CommonArgs,
    numerics: NumericChoices,
    model: &ModelArgs,
    adapter: &AdapterArgs,
) -> RunResult<Device> {
    let numerics = numerics.over(model.model.as_deref(), adapter.adapter.as_deref())?;
    device(common, numerics)
}

/// The processor, with what is kept of its rates in the user's cache folder. `LOWRANK_ISA` chooses
/// another instruction set than the best, for comparisons; with `LOWRANK_MEASURE=off` the
/// instruction set's name alone decides what `auto` is, so that no process differs from another.
pub fn machine() -> RunResult<Machine> {
    let rates = match std::env::var("LOWRANK_MEASURE").as_deref() {
        Ok("off") => Rates::ByName,
        Ok("on") | Err(_) => Rates::Measured {
            cache: source::own_cache_dir(),
        },
        Ok(other) => {
            let message = format!("LOWRANK_MEASURE is `{other}`, expected `on` or `off`");
            return Err(RunError::usage(message));
        }
    };
    Ok(Machine::new(forced_isa()?.unwrap_or_else(Isa::best), rates))
}

/// Says on standard error what `auto` left out.
pub fn say_warnings(machine: &Machine, common: &CommonArgs) {
    if !common.is_quiet() {
        machine.warnings().iter().for_each(output::note);
    }
}

/// The instruction set that the user insists on.
pub fn forced_isa() -> RunResult<Option<Isa>> {
    let Ok(name) = std::env::var("LOWRANK_ISA") else {
        return Ok(None);
    };
    let found = Isa::from_name(&name).filter(|isa| isa.is_available());
    let found = found.ok_or_else(|| {
        let names: Vec<_> = Isa::available().iter().map(|isa| isa.name()).collect();
        RunError::usage(format!(
            "LOWRANK_ISA is `{name}`, expected one of {}",
            names.join(", ")
        ))
    });
    found.map(Some)
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
