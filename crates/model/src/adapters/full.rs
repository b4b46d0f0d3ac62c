//! Full fine-tuning, the baseline: every parameter of the model is trained. What is saved is a
//! merged model.

use crate::adapters::train_whole;
use crate::error::ModelError;
use crate::model::Model;
use crate::trained::{AdapterReport, TrainMode};

impl Model {
    /// Makes every value trainable: full fine-tuning, the baseline.
    pub fn train_all(&mut self) -> Result<&AdapterReport, ModelError> {
        self.check_frozen()?;
        let (device, trainables) = (&self.device, &mut self.trainables);
        let modules = self.modules.iter_mut();
        self.report = AdapterReport {
            saved: modules
                .map(|module| train_whole(module, "", device, trainables))
                .collect(),
            ..AdapterReport::default()
        };
        self.mode = TrainMode::Full;
        Ok(&self.report)
    }
}
