//! How a model is trained: the one list that settings, runs and files go by.

use serde::{Deserialize, Serialize};

/// What of a model is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Low-rank adapters beside frozen weights (Hu et al. 2021).
    #[default]
    Lora,
    /// Every parameter: full fine-tuning.
    Full,
    /// The biases, and the head (Ben-Zaken et al. 2021).
    BitFit,
}

impl Method {
    /// Every method.
    pub const ALL: [Method; 3] = [Method::Lora, Method::Full, Method::BitFit];

    /// The name as written in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Method::Lora => "lora",
            Method::Full => "full",
            Method::BitFit => "bitfit",
        }
    }

    /// The name in reports.
    pub fn title(self) -> &'static str {
        match self {
            Method::Lora => "LoRA",
            Method::Full => "full fine-tuning",
            Method::BitFit => "BitFit",
        }
    }
}
