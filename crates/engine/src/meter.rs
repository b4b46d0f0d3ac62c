//! Counts of bytes by purpose and of floating-point operations. The same counter serves `cpu` and
//! `dry`, so that what a plan predicts is what a run counts.

/// What an allocation is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Pretrained values that never change.
    FrozenWeights,
    /// Values that the optimizer changes.
    TrainableWeights,
    /// One gradient value for each trainable value.
    Gradients,
    /// The optimizer's moments.
    OptimizerState,
    /// What forward hands on or keeps for backward, and gradients of activations.
    Activations,
    /// Packed copies and other scratch of one op.
    Workspace,
    /// States that frozen layers give, kept for the next time that a row comes.
    FrozenCache,
    /// Keys and values of the tokens so far, which generation reads.
    KvCache,
}

impl Purpose {
    /// Every purpose, in the order of [`MemoryReport::bytes`].
    pub const ALL: [Purpose; 8] = [
        Purpose::FrozenWeights,
        Purpose::TrainableWeights,
        Purpose::Gradients,
        Purpose::OptimizerState,
        Purpose::Activations,
        Purpose::Workspace,
        Purpose::FrozenCache,
        Purpose::KvCache,
    ];

    /// Those that training has: all but what generation keeps.
    pub fn of_training() -> impl Iterator<Item = Purpose> {
        let in_training = |purpose: &Purpose| *purpose != Purpose::KvCache;
        Purpose::ALL.into_iter().filter(in_training)
    }

    /// A name for tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Purpose::FrozenWeights => "frozen_weights",
            Purpose::TrainableWeights => "trainable_weights",
            Purpose::Gradients => "gradients",
            Purpose::OptimizerState => "optimizer_state",
            Purpose::Activations => "activations",
            Purpose::Workspace => "workspace",
            Purpose::FrozenCache => "prefix_cache",
            Purpose::KvCache => "kv_cache",
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

/// Bytes by purpose at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryReport {
    /// Bytes, in the order of [`Purpose::ALL`].
    pub bytes: [u64; Purpose::ALL.len()],
}

impl MemoryReport {
    /// Bytes of one purpose.
    pub fn of(&self, purpose: Purpose) -> u64 {
        self.bytes[purpose.index()]
    }

    /// Bytes of all purposes.
    pub fn total(&self) -> u64 {
        self.bytes.iter().sum()
    }
}

/// The running counts of one device.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    now: MemoryReport,
    peak: MemoryReport,
    flops: u64,
}

impl Meter {
    pub(crate) fn allocate(&mut self, purpose: Purpose, bytes: u64) {
        self.now.bytes[purpose.index()] += bytes;
        if self.now.total() > self.peak.total() {
            self.peak = self.now;
        }
    }

    pub(crate) fn release(&mut self, purpose: Purpose, bytes: u64) {
        self.now.bytes[purpose.index()] -= bytes;
    }

    pub(crate) fn add_flops(&mut self, flops: u64) {
        self.flops = self.flops.saturating_add(flops);
    }

    pub(crate) fn now(&self) -> MemoryReport {
        self.now
    }

    pub(crate) fn peak(&self) -> MemoryReport {
        self.peak
    }

    pub(crate) fn reset_peak(&mut self) {
        self.peak = self.now;
    }

    pub(crate) fn flops(&self) -> u64 {
        self.flops
    }
}
