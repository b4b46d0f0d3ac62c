//! What a model trains, and the account of it. It knows no model.

use lowrank_formats::peft::AdapterConfig;

/// What a model trains.
#[derive(Debug, Clone)]
pub enum TrainMode {
    /// Nothing.
    Frozen,
    /// An adapter and what goes with it, under this configuration.
    Adapter(AdapterConfig),
    /// Every value: full fine-tuning.
    Full,
}

/// One adapted layer.
#[derive(Debug, Clone, PartialEq)]
pub struct AdaptedModule {
    /// The layer's path.
    pub path: String,
    /// [out, in].
    pub shape: [usize; 2],
    /// r.
    pub rank: usize,
    /// alpha.
    pub alpha: f64,
    /// alpha / r, or alpha / √r.
    pub scaling: f64,
    /// Values of A and B.
    pub parameters: u64,
}

/// One module that is trained whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedModule {
    /// The module's path.
    pub path: String,
    /// Its values.
    pub parameters: u64,
}

/// Rows of a table that are trained in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedRows {
    /// The table's path.
    pub path: String,
    /// How many rows.
    pub rows: usize,
    /// Their values.
    pub parameters: u64,
}

/// What is trained, layer by layer.
#[derive(Debug, Clone, Default)]
pub struct AdapterReport {
    /// Adapted layers.
    pub modules: Vec<AdaptedModule>,
    /// Modules trained whole (`modules_to_save`, or all of them in full fine-tuning).
    pub saved: Vec<SavedModule>,
    /// Rows of tables (`trainable_token_indices`).
    pub rows: Vec<SavedRows>,
    /// Values of the biases that BitFit trains in other modules.
    pub biases: u64,
    /// What a user should know: choices made for them.
    pub notes: Vec<String>,
}

impl AdapterReport {
    /// Values of all A and B.
    pub fn adapter_parameters(&self) -> u64 {
        self.modules.iter().map(|m| m.parameters).sum()
    }
}
