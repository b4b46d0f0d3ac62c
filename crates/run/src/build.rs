//! The model of a run, with what trains on it.

use lowrank_engine::Device;
use lowrank_formats::Method;
use lowrank_formats::peft::BitFitConfig;
use lowrank_model::{LoadReport, Model};
use lowrank_train::base::BaseId;

use crate::base::load_notes;
use crate::error::{RunError, RunResult};
use crate::spec::RunSpec;

/// A model that is ready to train.
pub struct Built {
    /// The model.
    pub model: Model,
    /// What a user should know of it, a line each.
    pub notes: Vec<String>,
    /// What it stands on.
    pub base_id: BaseId,
}

/// Reads the weights, attaches what trains, and hashes the weights while they are read.
///
/// # Errors
/// A file cannot be read, or weights or adapter do not fit the model.
pub fn build(run: &RunSpec) -> RunResult<Built> {
    let (dir, device) = (&run.base.dir, &run.device);
    if run.config.from_scratch {
        let (model, notes) = build_model(run, device)?;
        let base_id = BaseId::without_weights(dir)?;
        return Ok(Built {
            model,
            notes,
            base_id,
        });
    }
    std::thread::scope(|scope| {
        let id = scope.spawn(|| BaseId::of(dir, device.threads()));
        let (model, notes) = build_model(run, device)?;
        match id.join() {
            Ok(id) => Ok(Built {
                model,
                notes,
                base_id: id?,
            }),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Loads the weights and attaches what trains. Returns what a user should know.
fn build_model(run: &RunSpec, device: &Device) -> RunResult<(Model, Vec<String>)> {
    let (mut model, report) = load(run, device)?;
    let mut notes = run.base.head.notes.clone();
    notes.extend(load_notes(&report));
    let adapter = run.adapter.as_ref();
    notes.extend(
        run.base
            .probe(adapter.and_then(|adapter| adapter.notes.as_ref()))?,
    );
    notes.extend(attach(run, &mut model)?);
    Ok((model, notes))
}

/// The model with the checkpoint's weights, or with new ones.
pub fn load(run: &RunSpec, device: &Device) -> RunResult<(Model, LoadReport)> {
    let seed = run.config.optimization.seed;
    if !run.config.from_scratch {
        return run.base.load(&run.head, seed, device);
    }
    let options = run.base.load_options(&run.head, seed);
    let model = Model::from_config(run.base.config.clone(), &options, device)?;
    Ok((model, LoadReport::default()))
}

/// Attaches what trains: fresh adapters, an existing one, or everything. Returns what a user should
/// know.
pub fn attach(run: &RunSpec, model: &mut Model) -> RunResult<Vec<String>> {
    let config = &run.config;
    let attached = match (&run.adapter, config.method) {
        (_, Method::Full) => model.train_all()?,
        (Some(adapter), Method::Lora | Method::BitFit) => {
            let attached = model.attach_tensors(&adapter.config, adapter.tensors.clone());
            let named = adapter.config.base_model();
            attached.map_err(|error| run.base.misfit(error, named, adapter.tensors.path()))?
        }
        (None, Method::Lora) => {
            let lora = (config.lora).to_peft(&config.model, config.revision.as_deref());
            model.attach_lora(&lora, config.optimization.seed)?
        }
        (None, Method::BitFit) => model.train_biases(&BitFitConfig {
            base_model_name_or_path: Some(config.model.clone()),
            revision: config.revision.clone(),
            ..BitFitConfig::default()
        })?,
    };
    let notes = attached.notes.clone();
    check_rates(run, model)?;
    Ok(notes)
}

/// PEFT trains low-rank terms of a table of tokens at a third rate (`loraplus_lr_embedding`), which
/// is none of ours.
fn check_rates(run: &RunSpec, model: &Model) -> RunResult<()> {
    let ratio = run.config.optimization.loraplus_lr_ratio;
    let of_table = |name: &str| name.ends_with(".lora_embedding_A");
    let mut trained = model.trainables().iter();
    if ratio.is_none() || !trained.any(|(_, trained)| of_table(&trained.name)) {
        return Ok(());
    }
    let message = "`loraplus_lr_ratio`: LoRA+ has a rate of its own for the table of tokens, which is not there";
    Err(RunError::usage(message)
        .hint("leave the table out of --target-modules; --trainable-token-indices and `lm_head` go with the ratio"))
}
