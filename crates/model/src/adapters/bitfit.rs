//! BitFit (Ben-Zaken et al. 2021): every bias of the model is trained, those of norms too, and the
//! head whole. The rest is frozen. What is saved are these parameters.

use lowrank_formats::peft::{BitFitConfig, KEY_PREFIX};

use crate::adapters::{check_shared, train_whole};
use crate::error::ModelError;
use crate::model::Model;
use crate::trained::{AdapterReport, TrainMode};

impl Model {
    /// Makes the biases and the head trainable. Completes the configuration with the head's names
    /// and keeps it. Errors: something is trained already, the model has no bias.
    pub fn train_biases(&mut self, config: &BitFitConfig) -> Result<&AdapterReport, ModelError> {
        let mut config = config.clone();
        config.task_type.get_or_insert(self.task.peft_type());
        let mut saved = None;
        let notes = self.complete_saved(&mut saved);
        let is_there = |name: &String| self.modules.iter().any(|m| m.has_part(name));
        config.modules_to_save = saved.into_iter().flatten().filter(is_there).collect();
        self.attach_biases(config, notes)?;
        Ok(&self.report)
    }

    /// Attaches what an existing configuration names; the values are still to be set.
    pub(super) fn attach_biases(
        &mut self,
        config: BitFitConfig,
        notes: Vec<String>,
    ) -> Result<(), ModelError> {
        self.check_frozen()?;
        let mut report = AdapterReport {
            notes,
            ..AdapterReport::default()
        };
        if !self.modules.parameters().any(|p| p.is_bias()) {
            let family = &self.config.model_type;
            return Err(ModelError::AdapterConfig(vec![format!(
                "this `{family}` model has no biases, so that BitFit has nothing to train; LoRA and full fine-tuning have"
            )]));
        }
        let (device, trainables) = (&self.device, &mut self.trainables);
        for module in self.modules.iter_mut() {
            let names = &config.modules_to_save;
            if names.iter().any(|name| module.has_part(name)) {
                check_shared(module)?;
                let saved = train_whole(module, KEY_PREFIX, device, trainables);
                report.saved.push(saved);
                continue;
            }
            for bias in module.parameters.iter_mut().filter(|p| p.is_bias()) {
                let key = format!("{KEY_PREFIX}{}", bias.name);
                report.biases += bias.train(key, device, trainables);
            }
        }
        self.report = report;
        self.mode = TrainMode::Adapter(config.into());
        Ok(())
    }
}
