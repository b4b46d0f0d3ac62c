//! Several loaded adapters in one model, each in a slot with a name: a batch's sequences then name
//! slots, and each sequence has the bits of its adapter alone. They are served, not trained.
//! Source: Chen et al. 2023, "Punica".

use lowrank_engine::ops::linear::Adapter;
use lowrank_engine::{Adapters, Purpose, RowSlots, Tensor};
use lowrank_formats::peft::{AdapterConfig, AdapterFile};

use crate::error::ModelError;
use crate::model::Model;
use crate::pass::Batch;
use crate::trained::{AdapterReport, TrainMode};

/// Names an adapter of a model: none, the attached one, or a loaded one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdapterSlot(usize);

impl AdapterSlot {
    /// The base model.
    pub const BASE: AdapterSlot = AdapterSlot(0);
    /// What is attached to the model, if anything is.
    pub const OWN: AdapterSlot = AdapterSlot(1);

    fn loaded(place: usize) -> Self {
        AdapterSlot(place + 2)
    }

    /// The place among the loaded adapters.
    fn place(self) -> Option<usize> {
        self.0.checked_sub(2)
    }
}

impl Default for AdapterSlot {
    fn default() -> Self {
        AdapterSlot::OWN
    }
}

impl Model {
    /// Loads an adapter beside those that are there.
    ///
    /// # Errors
    /// The name is taken; something is trained, or an adapter attached; the adapter does not fit,
    /// or is more than low-rank terms, which alone can differ within a batch; the network mixes
    /// rows of sequences in a layer.
    pub fn add_adapter(
        &mut self,
        name: &str,
        config: &AdapterConfig,
        file: AdapterFile,
    ) -> Result<AdapterSlot, ModelError> {
        self.check_slot(name, config)?;
        // It is attached to a store of its own as if it were the model's only one, and then moved.
        let others = std::mem::take(&mut self.trainables);
        let attached = self.attach_tensors(config, file).map(|_| ());
        let own = std::mem::replace(&mut self.trainables, others);
        (self.mode, self.report) = (TrainMode::Frozen, AdapterReport::default());
        let adapters: Vec<Option<Adapter>> = (self.modules.iter_mut())
            .map(|module| module.adapter.take())
            .collect();
        attached?;
        let behind = self.trainables.append(&format!("{name}/"), own);
        for (module, adapter) in self.modules.iter_mut().zip(adapters) {
            let Some(adapter) = adapter else { continue };
            module.slots.resize(self.slots.len() + 1, None);
            module.slots[self.slots.len()] = Some(Adapter {
                a: adapter.a.behind(behind),
                b: adapter.b.behind(behind),
                ..adapter
            });
        }
        self.slots.push(Some(name.to_owned()));
        Ok(AdapterSlot::loaded(self.slots.len() - 1))
    }

    /// Forgets a loaded adapter and frees its values; its slot is never given again. Returns
    /// whether it was there.
    pub fn remove_adapter(&mut self, slot: AdapterSlot) -> bool {
        let Some(at) = slot.place() else {
            return false;
        };
        let Some(_name) = self.slots.get_mut(at).and_then(Option::take) else {
            return false;
        };
        for module in self.modules.iter_mut() {
            let Some(adapter) = module.slots.get_mut(at).and_then(Option::take) else {
                continue;
            };
            for id in [adapter.a, adapter.b] {
                let nothing = Tensor::uninit(&self.device, 0, 0, Purpose::TrainableWeights);
                self.trainables.get_mut(id).value = nothing;
            }
        }
        true
    }

    /// The slot of a loaded adapter.
    pub fn adapter_slot(&self, name: &str) -> Option<AdapterSlot> {
        let place = (self.slots.iter()).position(|slot| slot.as_deref() == Some(name))?;
        Some(AdapterSlot::loaded(place))
    }

    /// The loaded adapters by name.
    pub fn adapters(&self) -> impl Iterator<Item = (&str, AdapterSlot)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(at, name)| Some((name.as_deref()?, AdapterSlot::loaded(at))))
    }

    /// As [`Model::logits`] with an adapter for each sequence. A sequence's logits have the bits
    /// that its adapter alone gives, whatever the others are.
    ///
    /// # Errors
    /// The batch does not fit the model, or a slot holds no adapter.
    pub fn logits_by_slot(
        &self,
        batch: &Batch<'_>,
        slots: &[AdapterSlot],
    ) -> Result<Vec<f32>, ModelError> {
        self.check(batch, None)?;
        let adapters = self.by_slot(batch.offsets, slots)?;
        Ok(self
            .device
            .install(|| self.to_vec(&self.infer(batch, adapters))))
    }

    fn check_slot(&self, name: &str, config: &AdapterConfig) -> Result<(), ModelError> {
        let state = |message: String| Err(ModelError::State(message));
        if self.adapter_slot(name).is_some() {
            return state(format!("an adapter `{name}` is loaded already"));
        }
        if !matches!(self.mode, TrainMode::Frozen) {
            return state("this model has an adapter of its own: load it anew".to_owned());
        }
        self.check_rows_apart()?;
        let beside = match config {
            AdapterConfig::Lora(config) => self.trained_beside_terms(config)?,
            AdapterConfig::BitFit(_) => vec!["biases".to_owned()],
        };
        match beside.is_empty() {
            true => Ok(()),
            false => Err(ModelError::AdapterUnsupported(vec![format!(
                "`{name}` trains {} too, but only low-rank terms can differ within a batch",
                beside.join(", ")
            )])),
        }
    }

    fn check_rows_apart(&self) -> Result<(), ModelError> {
        match self.network.keeps_rows_apart() {
            true => Ok(()),
            false => Err(ModelError::State(format!(
                "a `{}` model projects positions for all sequences of a batch at once, so that they share one adapter",
                self.config.model_type
            ))),
        }
    }

    /// The adapters of a pass over sequences of these offsets.
    ///
    /// # Errors
    /// There are not as many slots as sequences, one of them is no adapter's, or they differ where
    /// they cannot.
    pub(crate) fn by_slot(
        &self,
        offsets: &[usize],
        slots: &[AdapterSlot],
    ) -> Result<Adapters, ModelError> {
        let sequences = offsets.len().saturating_sub(1);
        if slots.len() != sequences {
            return Err(ModelError::Batch(format!(
                "{} adapter slots for {sequences} sequences",
                slots.len()
            )));
        }
        slots.iter().try_for_each(|&slot| self.check_loaded(slot))?;
        if slots.iter().all(|slot| *slot == AdapterSlot::OWN) {
            return Ok(Adapters::Own);
        }
        self.check_rows_apart()?;
        let slots: Vec<usize> = slots.iter().map(|slot| slot.0).collect();
        Ok(Adapters::BySlot(RowSlots::of_sequences(offsets, &slots)))
    }

    /// Refuses a slot that holds no adapter.
    pub(crate) fn check_loaded(&self, slot: AdapterSlot) -> Result<(), ModelError> {
        let is_loaded = |at: usize| self.slots.get(at).is_some_and(Option::is_some);
        match slot.place().is_none_or(is_loaded) {
            true => Ok(()),
            false => Err(ModelError::State(format!(
                "slot {} holds no adapter (any more)",
                slot.0
            ))),
        }
    }
}
